//! Tables as the examples print them.

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

/// An empty table; its columns but the first hold numbers.
pub(crate) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(head.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
