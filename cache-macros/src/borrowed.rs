//! What a type borrows. The load is a task that outlives its caller: of a reference it owns what is behind, of a type that has one
//! inside it can own nothing.

use proc_macro2::Span;
use syn::{
    Error, Lifetime, Result, Type, TypeFnPtr, TypeReference, TypeTraitObject, spanned::Spanned, visit::Visit,
};

/// Refuses a type with a reference or a lifetime in it.
pub(crate) fn nothing_in(of: &Type) -> Result<()> {
    let mut first = First(None);
    first.visit_type(of);
    let what = "the load outlives its caller and cannot own what is borrowed in here: take what owns it (`Vec<String>`), or a \
                reference to that (`&[String]`)";
    first.0.map_or(Ok(()), |at| Err(Error::new(at, what)))
}

/// Where the first is.
struct First(Option<Span>);

impl Visit<'_> for First {
    fn visit_type_reference(&mut self, reference: &TypeReference) {
        match &reference.lifetime {
            Some(lifetime) => self.visit_lifetime(lifetime),
            None => self.0 = self.0.or_else(|| Some(reference.span())),
        }
        self.visit_type(&reference.elem);
    }

    fn visit_lifetime(&mut self, lifetime: &Lifetime) {
        if lifetime.ident != "static" {
            self.0 = self.0.or_else(|| Some(lifetime.span()));
        }
    }

    // What functions take and answer is not held.
    fn visit_type_fn_ptr(&mut self, _: &TypeFnPtr) {}

    fn visit_type_trait_object(&mut self, _: &TypeTraitObject) {}
}
