//! What a function answers: how that becomes a loader's answer, and a cache's becomes the function's.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{
    Error, GenericArgument, PathArguments, Result, ReturnType, Signature, Type, TypeGroup, TypeParen,
    spanned::Spanned,
};

pub(crate) struct Returns {
    /// Whether there is an `Err` for what goes wrong.
    pub(crate) fallible: bool,
    optional: bool,
    shared: bool,
    /// What the cache keeps.
    pub(crate) value: Type,
}

impl Returns {
    pub(crate) fn of(signature: &Signature) -> Result<Self> {
        let ReturnType::Type(_, whole) = &signature.output else {
            return Err(Error::new(
                signature.ident.span(),
                "a cached function answers something: there is nothing to keep",
            ));
        };
        let (fallible, inner) = unwrapped(whole, "Result");
        let (optional, inner) = unwrapped(inner, "Option");
        let (shared, inner) = unwrapped(inner, "Arc");
        match inner {
            Type::Reference(reference) => {
                let what = "answer something owned: a cache keeps values, not references";
                Err(Error::new(reference.span(), what))
            }
            Type::ImplTrait(of) => {
                Err(Error::new(of.span(), "name this type: a cache keeps values of one type"))
            }
            value => Ok(Self { fallible, optional, shared, value: value.clone() }),
        }
    }

    /// From what the function answered, `answer`, to a loader's `Ok`.
    pub(crate) fn loaded(&self) -> TokenStream {
        match self.optional {
            true => quote! {
                match answer {
                    ::core::option::Option::Some(value) => ::traced_cache::Loaded::value(value),
                    ::core::option::Option::None => ::traced_cache::Loaded::absent(),
                }
            },
            false => quote!(answer),
        }
    }

    /// From what the cache has, `found`, to what the function answers.
    pub(crate) fn answered(&self) -> TokenStream {
        let value = &self.value;
        match (self.optional, self.shared) {
            (_, true) => quote!(found),
            (false, false) => quote!(<#value as ::core::clone::Clone>::clone(&found)),
            (true, false) => quote!(found.map(|found| <#value as ::core::clone::Clone>::clone(&found))),
        }
    }
}

/// Without parentheses, and without the delimiters that nobody sees around what another macro has matched.
pub(crate) fn bare(mut of: &Type) -> &Type {
    while let Type::Group(TypeGroup { elem, .. }) | Type::Paren(TypeParen { elem, .. }) = of {
        of = elem;
    }
    of
}

/// The first parameter of a type of this name.
pub(crate) fn unwrapped<'a>(whole: &'a Type, name: &str) -> (bool, &'a Type) {
    let whole = bare(whole);
    if let Type::Path(path) = whole
        && let Some(last) = path.path.segments.last()
        && last.ident == name
        && let PathArguments::AngleBracketed(parameters) = &last.arguments
        && let Some(GenericArgument::Type(inner)) = parameters.args.first()
    {
        return (true, bare(inner));
    }
    (false, whole)
}
