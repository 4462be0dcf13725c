//! A line on the terminal that says what is being done.

use std::io::{IsTerminal, Write, stderr};

/// No wider than most terminals, so that writing over it leaves nothing behind.
const WIDTH: usize = 79;

/// One line on stderr that is written over again and again, and gone in the end; nothing where stderr is no terminal.
#[derive(Debug)]
pub struct ProgressLine {
    visible: bool,
}

impl ProgressLine {
    /// An empty line.
    pub fn new() -> Self {
        ProgressLine { visible: stderr().is_terminal() }
    }

    /// Shows `text` instead of what was there.
    pub fn show(&self, text: &str) {
        if self.visible {
            let text: String = text.chars().take(WIDTH).collect();
            // A terminal that is gone needs no progress.
            let _ = write!(stderr(), "\r\x1b[K{text}");
        }
    }
}

impl Default for ProgressLine {
    fn default() -> Self {
        ProgressLine::new()
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.show("");
    }
}
