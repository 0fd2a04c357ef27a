//! What stands in the brackets.

use proc_macro2::Span;
use syn::{
    Expr, Ident, LitStr, Token, parenthesized,
    parse::{Parse, ParseStream},
    punctuated::Punctuated,
};

pub(crate) struct Options {
    pub(crate) cache: LitStr,
    pub(crate) key: Option<Expr>,
    pub(crate) skip: Vec<Ident>,
    pub(crate) caches: Option<Expr>,
    pub(crate) in_memory: bool,
}

const KNOWN: &str = "known are `key = ...`, `skip(...)`, `in_memory` and `caches = ...`";

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        if !input.peek(LitStr) {
            let what = "name the cache first: `#[cached(\"users\")]`";
            // Where nothing is, the attribute itself is the place.
            return Err(syn::Error::new(
                if input.is_empty() { Span::call_site() } else { input.span() },
                what,
            ));
        }
        let cache = input.parse()?;
        let mut options = Self { cache, key: None, skip: Vec::new(), caches: None, in_memory: false };
        while !input.is_empty() {
            input.parse::<Token![,]>()?;
            if input.is_empty() {
                break;
            }
            let name: Ident = input.parse()?;
            let twice = || syn::Error::new(name.span(), format!("`{name}` is there twice"));
            match name.to_string().as_str() {
                "key" => {
                    input.parse::<Token![=]>()?;
                    if options.key.replace(input.parse()?).is_some() {
                        return Err(twice());
                    }
                }
                "caches" => {
                    input.parse::<Token![=]>()?;
                    if options.caches.replace(input.parse()?).is_some() {
                        return Err(twice());
                    }
                }
                "in_memory" => {
                    if std::mem::replace(&mut options.in_memory, true) {
                        return Err(twice());
                    }
                }
                "skip" => {
                    let names;
                    parenthesized!(names in input);
                    options.skip.extend(Punctuated::<Ident, Token![,]>::parse_terminated(&names)?);
                }
                _ => return Err(syn::Error::new(name.span(), format!("no such option; {KNOWN}"))),
            }
        }
        Ok(options)
    }
}
