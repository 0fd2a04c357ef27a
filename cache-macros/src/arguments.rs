//! The arguments of a function: what of them makes the key, and how the load gets its own.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{
    Attribute, Error, Expr, ExprGroup, ExprParen, FnArg, Ident, Pat, ReceiverKind, Result, Signature, Type,
    TypeReference, spanned::Spanned,
};

use crate::{options::Options, returns::bare};

pub(crate) struct Arguments {
    pub(crate) receiver: Option<Receiver>,
    named: Vec<Argument>,
}

/// `self`, or `&self`.
pub(crate) struct Receiver {
    by_reference: bool,
}

impl Receiver {
    pub(crate) fn passed(&self) -> TokenStream {
        if self.by_reference { quote!(&__this) } else { quote!(__this) }
    }
}

struct Argument {
    name: Ident,
    by_reference: bool,
    skipped: bool,
}

/// Most parts of a tuple that is a key.
const PARTS: usize = 6;

impl Arguments {
    /// Takes `#[skip]` off the arguments.
    pub(crate) fn take(signature: &mut Signature, options: &Options) -> Result<Self> {
        let mut all = Self { receiver: None, named: Vec::new() };
        for argument in &mut signature.inputs {
            let typed = match argument {
                FnArg::Receiver(receiver) => {
                    let by_reference = match &receiver.kind {
                        ReceiverKind::Value => false,
                        ReceiverKind::Reference(_, _, None) => true,
                        _ => {
                            let what = "a cached method takes `&self` or `self`: a hit changes nothing";
                            return Err(Error::new(receiver.span(), what));
                        }
                    };
                    all.receiver = Some(Receiver { by_reference });
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
            let by_reference = match bare(&typed.ty) {
                Type::Reference(reference) if reference.mutability.is_some() => {
                    let what = "a cached function takes no `&mut`: a hit changes nothing";
                    return Err(Error::new(reference.and_token.span(), what));
                }
                // What lasts for ever the load need not own.
                Type::Reference(TypeReference { lifetime: Some(lifetime), .. })
                    if lifetime.ident == "static" =>
                {
                    false
                }
                Type::Reference(_) => true,
                Type::ImplTrait(of) => {
                    let what = "name this type: `impl Trait` cannot be owned by the load";
                    return Err(Error::new(of.span(), what));
                }
                _ => false,
            };
            let skipped = skipped || options.skip.contains(&name);
            all.named.push(Argument { name, by_reference, skipped });
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
            parts if parts.len() > PARTS => {
                let what =
                    format!("a key has {PARTS} parts at most: say `key = ...`, or `skip` some arguments");
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
        let this = self.receiver.as_ref().map(|receiver| match receiver.by_reference {
            true => quote!(let __this = <Self as ::core::clone::Clone>::clone(self);),
            false => quote!(let __this = <Self as ::core::clone::Clone>::clone(&self);),
        });
        let each = self.named.iter().map(|Argument { name, by_reference, .. }| match by_reference {
            true => quote_spanned!(name.span()=> let #name = ::std::borrow::ToOwned::to_owned(#name);),
            false => quote_spanned!(name.span()=> let #name = ::core::clone::Clone::clone(&#name);),
        });
        quote!(#this #(#each)*)
    }

    /// What the function is called with: by the load with its own, or in place with what the caller gave.
    pub(crate) fn passed(&self, owned: bool) -> Vec<TokenStream> {
        let pass = |Argument { name, by_reference, .. }: &Argument| match *by_reference && owned {
            true => quote!(&#name),
            false => quote!(#name),
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
