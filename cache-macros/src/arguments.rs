//! The arguments of a function: what of them makes the key, and how the load gets its own.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{
    Attribute, Error, Expr, ExprGroup, ExprParen, FnArg, Ident, Pat, ReceiverKind, Result, Signature, Token,
    Type, TypeReference, spanned::Spanned,
};

use crate::{
    borrowed,
    expand::hidden,
    key::MOST,
    options::Options,
    returns::{bare, unwrapped},
};

pub(crate) struct Arguments {
    pub(crate) receiver: Option<Receiver>,
    named: Vec<Argument>,
}

/// `self` or `&self`, or as its type says, `self: Arc<Self>` say.
pub(crate) struct Receiver {
    by_reference: bool,
    /// As it is written: one that a macro has been given is not the `self` of the macro.
    pub(crate) written: Token![self],
}

impl Receiver {
    fn of(receiver: &syn::Receiver) -> Result<Self> {
        let mutable = match &receiver.kind {
            ReceiverKind::Reference(_, _, mutability) => Some(mutability.is_some()),
            ReceiverKind::Typed(_, of) => match bare(of) {
                Type::Reference(of) => Some(of.mutability.is_some()),
                _ => None,
            },
            _ => None,
        };
        match mutable {
            Some(true) => {
                let what = "a cached method takes `&self` or `self`, not `&mut self`: a hit changes nothing";
                Err(Error::new(receiver.span(), what))
            }
            shared => Ok(Self { by_reference: shared.is_some(), written: receiver.self_token }),
        }
    }

    pub(crate) fn passed(&self) -> TokenStream {
        let this = hidden("this");
        if self.by_reference { quote!(&#this) } else { quote!(#this) }
    }
}

struct Argument {
    name: Ident,
    given: Given,
    skipped: bool,
}

/// What a caller gives.
#[derive(Clone, Copy)]
enum Given {
    /// What the load can have a copy of.
    Value,
    /// A reference, to what it can own.
    Reference,
    /// Perhaps a reference.
    Option,
}

impl Given {
    fn of(of: &Type) -> Result<Self> {
        let (optional, inner) = unwrapped(of, "Option");
        match inner {
            Type::Reference(reference) if reference.mutability.is_some() => {
                let what = "a cached function takes no `&mut`: a hit changes nothing";
                Err(Error::new(reference.and_token.span(), what))
            }
            // What lasts for ever the load need not own.
            Type::Reference(TypeReference { lifetime: Some(lifetime), .. }) if lifetime.ident == "static" => {
                Ok(Self::Value)
            }
            Type::Reference(reference) => {
                borrowed::nothing_in(&reference.elem)?;
                Ok(if optional { Self::Option } else { Self::Reference })
            }
            Type::ImplTrait(of) => {
                let what = "name this type: `impl Trait` cannot be owned by the load";
                Err(Error::new(of.span(), what))
            }
            inner => borrowed::nothing_in(inner).map(|()| Self::Value),
        }
    }
}

impl Arguments {
    /// Takes `#[skip]` off the arguments.
    pub(crate) fn take(signature: &mut Signature, options: &Options) -> Result<Self> {
        let mut all = Self { receiver: None, named: Vec::new() };
        for argument in &mut signature.inputs {
            let typed = match argument {
                FnArg::Receiver(receiver) => {
                    all.receiver = Some(Receiver::of(receiver)?);
                    continue;
                }
                FnArg::Typed(typed) => typed,
            };
            let skipped = skip(&mut typed.attrs);
            let name = match &*typed.pat {
                Pat::Ident(pat) if pat.subpat.is_none() => pat.ident.clone(),
                other => {
                    return Err(Error::new(other.span(), "give this argument of a cached function a name"));
                }
            };
            let given = Given::of(&typed.ty)?;
            let skipped = skipped || options.skip.contains(&name);
            all.named.push(Argument { name, given, skipped });
        }
        for name in &options.skip {
            if !all.named.iter().any(|argument| argument.name == *name) {
                return Err(Error::new(name.span(), "there is no such argument"));
            }
        }
        if let (Some(key), Some(_)) = (&options.key, all.named.iter().find(|argument| argument.skipped)) {
            return Err(Error::new(key.span(), "`key` says it all: leave `skip` out"));
        }
        Ok(all)
    }

    /// The expression that is the key.
    pub(crate) fn key(&self, options: &Options, name: &Ident) -> Result<TokenStream> {
        if let Some(key) = &options.key {
            return Ok(self.lent(key));
        }
        let parts: Vec<_> = self.named.iter().filter(|argument| !argument.skipped).map(|a| &a.name).collect();
        match parts.as_slice() {
            [] => Ok(quote!("-")),
            [part] => Ok(quote_spanned!(part.span()=> &#part)),
            parts if parts.len() > MOST => {
                let what =
                    format!("a key has {MOST} parts at most: say `key = ...`, or `skip` some arguments");
                Err(Error::new(name.span(), what))
            }
            parts => Ok(quote!((#(&#parts,)*))),
        }
    }

    /// A key that is said. Arguments that are named in it, alone or in a tuple, stay the load's.
    fn lent(&self, key: &Expr) -> TokenStream {
        match key {
            Expr::Path(path) if self.named.iter().any(|argument| path.path.is_ident(&argument.name)) => {
                quote_spanned!(path.span()=> &#path)
            }
            Expr::Tuple(tuple) => {
                let parts = tuple.elems.iter().map(|part| self.lent(part));
                quote!((#(#parts,)*))
            }
            Expr::Paren(ExprParen { expr, .. }) | Expr::Group(ExprGroup { expr, .. }) => self.lent(expr),
            other => quote!(#other),
        }
    }

    /// Makes each argument the load's own.
    pub(crate) fn owned(&self) -> TokenStream {
        let kept = hidden("this");
        let this = self.receiver.as_ref().map(|Receiver { by_reference, written }| match by_reference {
            true => quote!(let #kept = ::core::clone::Clone::clone(#written);),
            false => quote!(let #kept = ::core::clone::Clone::clone(&#written);),
        });
        let each = self.named.iter().map(|Argument { name, given, .. }| match given {
            Given::Value => quote_spanned!(name.span()=> let #name = ::core::clone::Clone::clone(&#name);),
            Given::Reference => {
                quote_spanned!(name.span()=> let #name = ::std::borrow::ToOwned::to_owned(#name);)
            }
            Given::Option => {
                quote_spanned!(name.span()=> let #name = #name.map(::std::borrow::ToOwned::to_owned);)
            }
        });
        quote!(#this #(#each)*)
    }

    /// What the function is called with: by the load with its own, or in place with what the caller gave.
    pub(crate) fn passed(&self, owned: bool) -> Vec<TokenStream> {
        let pass = |Argument { name, given, .. }: &Argument| match given {
            Given::Reference if owned => quote!(&#name),
            Given::Option if owned => quote!(#name.as_ref().map(::std::borrow::Borrow::borrow)),
            _ => quote!(#name),
        };
        self.named.iter().map(pass).collect()
    }
}

pub(crate) fn without_skips(signature: &mut Signature) {
    for argument in &mut signature.inputs {
        if let FnArg::Typed(typed) = argument {
            skip(&mut typed.attrs);
        }
    }
}

/// Takes `#[skip]` off; says whether it was there.
fn skip(attributes: &mut Vec<Attribute>) -> bool {
    let before = attributes.len();
    attributes.retain(|attribute| !attribute.path().is_ident("skip"));
    attributes.len() < before
}
