//! One model, three languages.
