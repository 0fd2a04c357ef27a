//! `#[derive(CacheKey)]`: a type of the application as a key.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Data, DeriveInput, Error, Fields, Generics, Ident, Result, TypeParamBound, ext::IdentExt, parse_quote,
    parse2,
};

/// What the longest tuple has that is a key.
pub(crate) const MOST: usize = 12;

pub(crate) fn cache_key(input: TokenStream) -> TokenStream {
    expand(input).unwrap_or_else(Error::into_compile_error)
}

fn expand(input: TokenStream) -> Result<TokenStream> {
    let DeriveInput { ident, mut generics, data, .. } = parse2(input)?;
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(parse_quote!(::traced_cache::CacheKey));
        parameter.bounds.extend::<[TypeParamBound; 6]>([
            parse_quote!(::core::clone::Clone),
            parse_quote!(::core::cmp::Eq),
            parse_quote!(::core::hash::Hash),
            parse_quote!(::core::marker::Send),
            parse_quote!(::core::marker::Sync),
            parse_quote!('static),
        ]);
    }
    let (render, owned) = match &data {
        Data::Struct(data) => structure(&ident, &data.fields, &generics)?,
        Data::Enum(data) => {
            if let Some(lifetime) = generics.lifetimes().next() {
                return Err(Error::new_spanned(
                    lifetime,
                    "an enum that borrows has no form that a loader could keep: own what it has, or use a struct",
                ));
            }
            let arms = data.variants.iter().map(|variant| arm(&variant.ident, &variant.fields));
            let arms = arms.collect::<Result<Vec<_>>>()?;
            if arms.is_empty() {
                return Err(Error::new(ident.span(), "an enum without variants names no entry"));
            }
            (quote!(match self { #(#arms),* }), Owned::itself())
        }
        Data::Union(_) => {
            return Err(Error::new(ident.span(), "a union is no cache key: it does not say what it holds"));
        }
    };
    let Owned { form, made } = owned;
    let (of, arguments, bounds) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #of ::traced_cache::CacheKey for #ident #arguments #bounds {
            type Owned = #form;
            fn render<'__buf>(&'__buf self, buf: &'__buf mut ::traced_cache::KeyBuf) -> &'__buf str {
                #render
            }
            fn to_owned_key(&self) -> Self::Owned {
                #made
            }
        }
    })
}

/// What loaders get.
struct Owned {
    form: TokenStream,
    made: TokenStream,
}

impl Owned {
    fn itself() -> Self {
        Self { form: quote!(Self), made: quote!(::core::clone::Clone::clone(self)) }
    }
}

/// A struct is the tuple of its fields, one of a single field that field.
fn structure(name: &Ident, fields: &Fields, generics: &Generics) -> Result<(TokenStream, Owned)> {
    if fields.is_empty() {
        return Err(Error::new(
            name.span(),
            "a struct without fields names no more than one entry: use a text",
        ));
    }
    let parts: Vec<_> = fields.members().map(|member| quote!(&self.#member)).collect();
    let render = match &parts[..] {
        [part] => quote!(::traced_cache::CacheKey::render(#part, buf)),
        _ => tuple(name, &parts)?,
    };
    if generics.lifetimes().next().is_none() {
        return Ok((render, Owned::itself()));
    }
    let types: Vec<_> = fields.iter().map(|field| &field.ty).collect();
    let (form, made) = match (&types[..], &parts[..]) {
        ([of], [part]) => (
            quote!(<#of as ::traced_cache::CacheKey>::Owned),
            quote!(::traced_cache::CacheKey::to_owned_key(#part)),
        ),
        _ => (
            quote!((#(<#types as ::traced_cache::CacheKey>::Owned,)*)),
            quote!((#(::traced_cache::CacheKey::to_owned_key(#parts),)*)),
        ),
    };
    Ok((render, Owned { form, made }))
}

/// A variant is its name, one with fields the tuple of its name and them.
fn arm(variant: &Ident, fields: &Fields) -> Result<TokenStream> {
    let name = variant.unraw().to_string();
    if fields.is_empty() {
        return Ok(quote!(Self::#variant { .. } => ::traced_cache::CacheKey::render(#name, buf)));
    }
    let names: Vec<_> = (0..fields.len()).map(|at| format_ident!("__part_{at}")).collect();
    let members = fields.members();
    let parts: Vec<_> = [quote!(#name)].into_iter().chain(names.iter().map(|name| quote!(#name))).collect();
    let render = tuple(variant, &parts)?;
    Ok(quote!(Self::#variant { #(#members: #names),* } => { #render }))
}

fn tuple(name: &Ident, parts: &[TokenStream]) -> Result<TokenStream> {
    if parts.len() > MOST {
        let what = format!(
            "a key has at most {MOST} parts, the name of a variant among them: put some into a type of their own"
        );
        return Err(Error::new(name.span(), what));
    }
    // The tuple does not live as long as the text.
    Ok(quote! {
        let _ = ::traced_cache::CacheKey::render(&(#(#parts),*), buf);
        buf.as_str()
    })
}
