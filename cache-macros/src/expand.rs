//! Puts the parts together.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::{Attribute, Error, FnArg, Ident, ItemFn, Meta, Pat, Result, ReturnType, Signature, Type, parse2};

use crate::{
    arguments::{self, Arguments},
    options::Options,
    returns::Returns,
};

pub(crate) fn cached(options: TokenStream, function: TokenStream) -> TokenStream {
    let fallback = function.clone();
    expand(options, function).unwrap_or_else(|error| {
        // The function stays, so that its callers are no errors beside this one.
        let error = error.into_compile_error();
        match parse2::<ItemFn>(fallback.clone()) {
            Ok(mut function) => {
                arguments::without_skips(&mut function.sig);
                quote!(#error #function)
            }
            Err(_) => quote!(#error #fallback),
        }
    })
}

fn expand(options: TokenStream, function: TokenStream) -> Result<TokenStream> {
    let options: Options = parse2(options)?;
    let ItemFn { attrs, vis, mut sig, block, .. } = parse2(function)
        .map_err(|error| Error::new(error.span(), "`#[cached]` goes on an `async fn` with a body"))?;
    is_async(&sig)?;
    let returns = Returns::of(&sig)?;
    let arguments = Arguments::take(&mut sig, &options)?;
    let key = arguments.key(&options, &sig.ident)?;

    let name = format_ident!("__uncached_{}", sig.ident);
    let mut inner = sig.clone();
    inner.ident = name.clone();
    // Only the body changes them.
    without_mut(&mut sig);
    // A method's own form stands beside it, for the sake of `Self`; a function's inside of it, where nobody sees it.
    let (lints, attrs) = lints(attrs, arguments.receiver.is_some());
    let (outside, inside) = match arguments.receiver.is_some() {
        true => {
            let only_own = only_own(&sig);
            (quote!(#only_own #(#lints)* #[doc(hidden)] #inner #block), TokenStream::new())
        }
        false => (TokenStream::new(), quote!(#inner #block)),
    };

    let (function, registry) = registry(&options, &sig, &returns.value);
    let owned = arguments.owned();
    let (own, given) = (arguments.passed(true), arguments.passed(false));
    let (by_load, in_place) = match &arguments.receiver {
        Some(receiver) => {
            let (this, written) = (receiver.passed(), &receiver.written);
            (quote!(Self::#name(#this, #(#own),*)), quote!(#written.#name(#(#given),*)))
        }
        None => (quote!(#name(#(#own),*)), quote!(#name(#(#given),*))),
    };
    let (loaded, answered) = (returns.loaded(), returns.answered());
    let (cache, looked_up) = (hidden("cache"), hidden("found"));
    let (look_up, load, finish) = match returns.fallible {
        true => (
            quote!(#registry?),
            quote!(#by_load.await.map(|answer| #loaded)),
            quote! {
                let found = #looked_up?;
                ::core::result::Result::Ok(#answered)
            },
        ),
        false => (
            quote!(::traced_cache::config::expect_cache(#registry)),
            quote! {
                let answer = #by_load.await;
                ::traced_cache::ok(#loaded)
            },
            quote! {
                match #looked_up {
                    ::core::result::Result::Ok(found) => #answered,
                    // There is nowhere to put the error.
                    ::core::result::Result::Err(_) => #in_place.await,
                }
            },
        ),
    };
    Ok(quote! {
        #outside
        #(#attrs)*
        #vis #sig {
            #inside
            #function
            let #cache = #look_up;
            let #looked_up = #cache.get_or_set_lazily(#key, || {
                #owned
                move || async move { #load }
            });
            let #looked_up = #looked_up.await;
            #finish
        }
    })
}

/// A variable that no argument is taken for, whatever its name.
pub(crate) fn hidden(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

/// Where the cache comes from, and what of the function that needs to stand in it.
fn registry(options: &Options, signature: &Signature, value: &Type) -> (TokenStream, TokenStream) {
    let Options { cache, caches, in_memory, .. } = options;
    // A key that is said is believed. One that is made of the arguments may be another function's as well.
    let (function, of) = match options.key {
        Some(_) => {
            let get = Ident::new(if *in_memory { "in_memory" } else { "cache" }, Span::call_site());
            (TokenStream::new(), quote!(#get::<#value>(#cache)))
        }
        None => {
            let said = signature.ident.to_string();
            let function = quote! {
                static __FUNCTION: ::traced_cache::config::Function =
                    ::traced_cache::config::Function::new(::core::module_path!(), #said, ::core::line!());
            };
            let get = Ident::new(if *in_memory { "in_memory_of" } else { "cache_of" }, Span::call_site());
            (function, quote!(#get::<#value>(#cache, &__FUNCTION)))
        }
    };
    let registry = match caches {
        Some(caches) => quote!((#caches).#of),
        None => quote!(::traced_cache::Caches::installed().and_then(|caches| caches.#of)),
    };
    (function, registry)
}

fn is_async(signature: &Signature) -> Result<()> {
    if signature.asyncness.is_some() {
        return Ok(());
    }
    let what = match is_future(&signature.output) {
        true => {
            "`#[cached]` goes on an `async fn`, and this is what a macro such as `#[async_trait]` has made of one: move the \
             body to a cached function or a method of the type's own, and call that from here"
        }
        false => "`#[cached]` goes on an `async fn`: a cache may have to wait",
    };
    Err(Error::new(signature.ident.span(), what))
}

/// `Pin<Box<dyn Future<...>>>`.
fn is_future(output: &ReturnType) -> bool {
    let ReturnType::Type(_, output) = output else { return false };
    matches!(&**output, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "Pin"))
}

fn without_mut(signature: &mut Signature) {
    for argument in &mut signature.inputs {
        match argument {
            FnArg::Receiver(receiver) => receiver.mutability = None,
            FnArg::Typed(typed) => {
                if let Pat::Ident(pat) = &mut *typed.pat {
                    pat.mutability = None;
                }
            }
        }
    }
}

/// What a method's attributes say of lints, for its body, and all of them for itself. There an expectation that the body meets
/// would not be met. What is inside of a function has the function's.
fn lints(attributes: Vec<Attribute>, of_method: bool) -> (Vec<Attribute>, Vec<TokenStream>) {
    let levels = ["allow", "expect", "warn", "deny", "forbid"];
    let is_lint = |at: &&Attribute| levels.iter().any(|level| at.path().is_ident(level));
    let lints = attributes.iter().filter(is_lint).filter(|_| of_method).cloned().collect();
    let own = attributes.iter().map(|at| match &at.meta {
        Meta::List(list) if of_method && list.path.is_ident("expect") => {
            let said = &list.tokens;
            quote!(#[allow(#said)])
        }
        _ => quote!(#at),
    });
    (lints, own.collect())
}

/// Nothing tells a macro that a method belongs to a trait. In an `impl` of one this is an error that says it, at the method.
fn only_own(signature: &Signature) -> TokenStream {
    let name = &signature.ident;
    let says = format_ident!("CACHED_TAKES_METHODS_OF_A_TYPE_AND_NONE_OF_A_TRAIT_{}", name);
    quote!(#[doc(hidden)] #[allow(dead_code, non_upper_case_globals, reason = "its name is for an error")] const #says: () = ();)
}
