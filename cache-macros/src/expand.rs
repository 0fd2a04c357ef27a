//! Puts the parts together.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Error, ItemFn, Result, parse2};

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
    if sig.asyncness.is_none() {
        return Err(Error::new(
            sig.ident.span(),
            "`#[cached]` goes on an `async fn`: a cache may have to wait",
        ));
    }
    let returns = Returns::of(&sig)?;
    let arguments = Arguments::take(&mut sig, &options)?;
    let key = arguments.key(&options, &sig.ident)?;

    let Options { cache, caches, .. } = &options;
    let name = format_ident!("__uncached_{}", sig.ident);
    let mut inner = sig.clone();
    inner.ident = name.clone();
    // A method's own form stands beside it, for the sake of `Self`; a function's inside of it, where nobody sees it.
    let inner = match arguments.receiver.is_some() {
        true => quote!(#[doc(hidden)] #inner #block),
        false => quote!(#inner #block),
    };
    let (outside, inside) = match arguments.receiver.is_some() {
        true => (inner, TokenStream::new()),
        false => (TokenStream::new(), inner),
    };

    let value = &returns.value;
    let registry = match caches {
        Some(caches) => quote!((#caches).cache::<#value>(#cache)),
        None => quote!(::traced_cache::Caches::installed().and_then(|caches| caches.cache::<#value>(#cache))),
    };
    let owned = arguments.owned();
    let (own, given) = (arguments.passed(true), arguments.passed(false));
    let (by_load, in_place) = match &arguments.receiver {
        Some(receiver) => {
            let this = receiver.passed();
            (quote!(Self::#name(#this, #(#own),*)), quote!(self.#name(#(#given),*)))
        }
        None => (quote!(#name(#(#own),*)), quote!(#name(#(#given),*))),
    };
    let (loaded, answered) = (returns.loaded(), returns.answered());
    let (look_up, load, finish) = match returns.fallible {
        true => (
            quote!(#registry?),
            quote!(#by_load.await.map(|answer| #loaded)),
            quote! {
                let found = found?;
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
                match found {
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
            let __cache = #look_up;
            let found = __cache.get_or_set_lazily(#key, || {
                #owned
                move || async move { #load }
            });
            let found = found.await;
            #finish
        }
    })
}
