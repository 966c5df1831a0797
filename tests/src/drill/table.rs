//! The table of a drill's results.

/// Columns with their widths; the first one is aligned to the left, the others to the right.
pub struct Table<const COLUMNS: usize>(pub [(&'static str, usize); COLUMNS]);

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// The names.
    pub fn head(&self) -> String {
        self.cells(self.0.map(|(name, _)| name.to_owned()))
    }

    /// One result, and below it why it failed, if it did.
    pub fn line(&self, cells: [String; COLUMNS], faults: &[String]) -> String {
        let verdict = if faults.is_empty() { "PASS" } else { "FAIL" };
        let mut text = format!("{}  {verdict}", self.cells(cells));
        for fault in faults {
            text += &format!("\n    {fault}");
        }
        text
    }

    fn cells(&self, cells: [String; COLUMNS]) -> String {
        let mut text = String::new();
        for (index, ((_, width), cell)) in self.0.iter().zip(cells).enumerate() {
            text += &if index == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
        }
        text
    }
}

/// A figure with so many digits behind the point; a dash if there is none.
pub fn figure(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(|| "-".into(), |figure| format!("{figure:.digits$}"))
}
