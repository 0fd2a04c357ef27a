//! What the pages of this repository say of themselves: links that lead somewhere, code that is compiled, files that the
//! configuration reader accepts, commands that exist. `scripts/readme` runs the README's commands.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod code;
mod commands;
mod links;
mod page;
