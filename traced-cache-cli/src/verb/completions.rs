//! `completions`

use std::io;

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::{
    end::{Exit, Failure},
    options::Options,
    output,
};

pub(crate) fn run(shell: Shell) -> Result<Exit, Failure> {
    let mut script = io::Cursor::new(Vec::new());
    generate(shell, &mut Options::command(), "traced-cache", &mut script);
    output::write(String::from_utf8_lossy(&script.into_inner()).trim_end())?;
    Ok(Exit::Done)
}
