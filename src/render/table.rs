//! Aligned columns, with colours that take no width.

/// A colour of the terminal's own palette.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Red,
    Green,
    Yellow,
    Cyan,
    Bold,
}

/// Rows whose columns stand in line, headings among them.
pub(super) struct Table {
    rows: Vec<Vec<Cell>>,
}

struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Table {
    pub(super) fn new() -> Table {
        Table { rows: Vec::new() }
    }

    pub(super) fn head<const N: usize>(&mut self, names: [&str; N]) {
        self.row(names.map(|name| (name, Some(Colour::Bold))));
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [(&str, Option<Colour>); N]) {
        let cells = cells.into_iter().map(|(text, colour)| Cell { text: printable(text), colour });
        self.rows.push(cells.collect());
    }

    pub(super) fn blank(&mut self) {
        self.rows.push(Vec::new());
    }

    pub(super) fn render(&self, coloured: bool) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row: &Vec<Cell>| row.get(column));
            cells.map(|cell: &Cell| cell.text.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let last = row.len().saturating_sub(1);
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let padding = if column == last { 0 } else { width - cell.text.chars().count() + 2 };
                match cell.colour {
                    Some(colour) => text.push_str(&paint(&cell.text, colour, coloured)),
                    None => text.push_str(&cell.text),
                }
                text.extend(std::iter::repeat_n(' ', padding));
            }
            text.push('\n');
        }
        text
    }
}

/// Puts a text in a colour, where colours are wanted.
pub(super) fn paint(text: &str, colour: Colour, coloured: bool) -> String {
    let code = match colour {
        Colour::Red => 31,
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Cyan => 36,
        Colour::Bold => 1,
    };
    if coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// No name may drive the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
