//! [`macro@cached`]: an async function whose answers are kept in a cache of a configuration file. [`CacheKey`]: a type of the
//! application as a key. Used through `traced-cache`, feature `macros`.

mod arguments;
mod borrowed;
mod expand;
mod key;
mod options;
mod returns;

use proc_macro::TokenStream;

/// Keeps the answers of an async function in a cache of the installed registry: its levels, its policy and its type of value
/// are those of `Caches::cache`. The function itself becomes the loader; the macro adds no behaviour of its own.
///
/// ```
/// use traced_cache::{BoxError, Caches, cached, config::Format};
///
/// # #[derive(Clone)]
/// # struct Db;
/// # impl Db {
/// #     async fn name(&self, id: u64) -> Result<String, BoxError> {
/// #         Ok(format!("user {id}"))
/// #     }
/// # }
/// #[cached("names")]
/// async fn name(#[skip] db: &Db, id: u64) -> Result<String, BoxError> {
///     // Runs on a miss, once for all who ask at the same time.
///     db.name(id).await
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), BoxError> {
/// # let db = Db;
/// // In a program: `Caches::from_file("cache.toml")`.
/// let file = "[providers.local]\nbackend = 'memory'\nentries = 1000\n[caches.names]\nlevels = ['local']\n";
/// let caches = Caches::builder().from_text(Format::Toml, file).await?;
/// caches.install()?;
/// assert_eq!(name(&db, 42).await?, "user 42");
/// assert_eq!(name(&db, 42).await?, "user 42");
/// assert_eq!(caches.cache::<String>("names")?.stats().loads, 1);
/// # Ok(())
/// # }
/// ```
///
/// | option | what it says |
/// | --- | --- |
/// | `"users"` | the name of the cache. Required, and first |
/// | `key = (tenant, id)` | the key: any expression over the arguments that is a `CacheKey`; those that it names, alone or in a tuple, are borrowed. Otherwise all arguments but `self` and those that are skipped: alone as it is, several as a tuple, none as `"-"` |
/// | `skip(db)` | arguments that do not take part in the key; or `#[skip]` on the argument itself |
/// | `in_memory` | the value is of any type, and the cache has no remote level: `Caches::in_memory` in the place of `Caches::cache` |
/// | `caches = self.caches` | the registry, an expression. Otherwise the one of `Caches::install` |
///
/// **The key does not name the function, nor what `self` holds.** Two functions on one cache would get each other's values for
/// equal arguments, those without arguments for `"-"`: give each a cache of its own, or a `key` that tells them apart, such as
/// `key = ("email", user)`. So the first function without a `key` that is called has the cache, and any other one without a
/// `key` gets an error of kind `Config` from it. A `key` is believed, and other processes are not seen.
///
/// Arguments are borrowed on a hit, and cloned (references and `Option`s of them, unless `'static`: made owned) on a miss, for the
/// load is a task that outlives its caller. So they are `Send + 'static` once owned: no `Vec<&str>`. A method needs `Self: Clone`,
/// too, or takes `self: Arc<Self>` or `self: &Arc<Self>`.
///
/// | the function answers | what is kept | what its caller gets |
/// | --- | --- | --- |
/// | `Result<T, E>` | `T` | a clone of it |
/// | `Result<Arc<T>, E>` | `T` | the `Arc` |
/// | `Result<Option<T>, E>`, `Result<Option<Arc<T>>, E>` | `T`; `None` is remembered for the policy's `absent_ttl` | the same |
/// | the same without `Result` | the same | the same |
///
/// `E` takes the errors of the cache: `E: From<traced_cache::Error>`. An error of the function itself comes wrapped in one, of
/// kind `Load`, and `load_error::<E>()` gives it back.
///
/// A function that answers no `Result` has nowhere to put an error. Should its cache fail (a loader that panics or runs into
/// its limit, a cache that was closed), it runs as if it had none; that no registry is installed, or that it has no such
/// cache, one of another type or one of another function, is a mistake in the program, and panics.
///
/// Not taken:
/// - methods in an `impl` of a trait, with `#[async_trait]` or without: put the body into a cached method of the type itself, or
///   a cached function, and call that;
/// - functions of an `impl` that take no `self` and say `Self`: name the type. If it has parameters: write a free function;
/// - type parameters that no argument has;
/// - `type Answer = Result<User, MyError>`: `Result`, `Option` and `Arc` are known by their names, so an alias is a value like
///   any other. One that is called `Result` and has its parameter, as that of `std::io`, is right;
/// - `&mut` arguments, and `impl Trait`;
/// - a function that awaits itself, for other arguments: let it call a plain function that answers
///   `Pin<Box<dyn Future<Output = ...> + Send>>`, which is `Box::pin` of it. For the same arguments it is an error of kind `Cycle`.
#[proc_macro_attribute]
pub fn cached(options: TokenStream, function: TokenStream) -> TokenStream {
    expand::cached(options.into(), function.into()).into()
}

/// Makes a struct or an enum a key.
///
/// ```
/// use traced_cache::{CacheKey, Error, Memory, TracedCache, ok};
///
/// #[derive(CacheKey, Clone, PartialEq, Eq, Hash)]
/// struct Page {
///     shop: u32,
///     slug: String,
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Error> {
/// let pages = TracedCache::<String>::builder("pages").level(Memory::entries(1000)).build()?;
/// let key = Page { shop: 7, slug: "about".to_owned() };
/// let page = pages.get_or_set(&key, || async { ok("<h1>About</h1>".to_owned()) }).await?;
/// // The same key as the tuple of its fields.
/// assert_eq!(pages.get((7, "about")).await?, Some(page));
/// # Ok(())
/// # }
/// ```
///
/// | what it is | what its key is | what loaders get ([`Owned`](https://docs.rs/traced-cache/latest/traced_cache/trait.CacheKey.html#associatedtype.Owned)) |
/// | --- | --- | --- |
/// | a struct of one field | that of the field | the struct |
/// | a struct of several | that of the tuple of its fields, in their order | the struct |
/// | a struct with a lifetime, such as `Page<'a> { shop: u32, slug: &'a str }` | the same | the owned field, or the tuple of them: `(u32, String)` |
/// | a variant without fields | its name, as a text | the enum |
/// | a variant with fields | that of the tuple of its name and them | the enum |
///
/// **The order of fields and the names of variants are part of the key**, at remote levels, too: who changes them, or adds a
/// field, starts with an empty cache. Names of fields and of the type are not. Fields are keys themselves, at most 12, and of a
/// variant 11. What is handed to loaders is `Clone + Eq + Hash + Send + Sync + 'static`, so derive `Clone`, `PartialEq`, `Eq` and
/// `Hash` where there is no lifetime.
#[proc_macro_derive(CacheKey)]
pub fn cache_key(input: TokenStream) -> TokenStream {
    key::cache_key(input.into()).into()
}
