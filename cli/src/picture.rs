//! One cut as a picture in text, on the server's time axis.

use std::fmt::Write;

use timesync::time::Nanos;

/// Characters between the names and the right edge.
const WIDTH: usize = 72;

/// What one host did, as certified, in nanoseconds after T.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Its name.
    pub host: String,
    /// P: the last request that is part of the snapshot was classified no later than this.
    pub p_latest: Nanos,
    /// Q: the first reply to a later request left no earlier than this.
    pub q_earliest: Nanos,
}

/// Draws the bars of one cut.
pub fn draw(bars: &[Bar], stretch: Nanos) -> String {
    let last_p = bars.iter().map(|bar| bar.p_latest).max().unwrap_or_default();
    let first_q = bars.iter().map(|bar| bar.q_earliest).min().unwrap_or_default();
    let right = bars.iter().map(|bar| bar.q_earliest).max().unwrap_or_default().get().max(1);
    // A host that saw no write for long has an early P. What counts is the last one: the picture begins near it, so
    // that the margin fills most of it.
    let span = (right - last_p.get().min(0)).max(1);
    let (left, right) = (last_p.get().min(0) - span / 6, right + span / 6);
    let column = |at: Nanos| {
        let column = (i128::from(at.get() - left)) * (WIDTH as i128 - 1) / i128::from(right - left);
        usize::try_from(column.clamp(0, WIDTH as i128 - 1)).unwrap_or(0)
    };
    let name_width = bars.iter().map(|bar| bar.host.chars().count()).max().unwrap_or(0).max("margin".len());
    let mut text = String::new();
    let mut line = |name: &str, cells: &[char]| {
        let cells: String = cells.iter().collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<name_width$}  {}", cells.trim_end());
    };

    let mut axis = vec![' '; WIDTH];
    let (at_t, at_release) = (column(Nanos::ZERO), column(stretch));
    let label = format!("T + V ({stretch})");
    if at_release < at_t + 3 {
        put(&mut axis, at_t, &format!("T, {label}"));
    } else {
        put(&mut axis, at_t, "T");
        put(&mut axis, at_release.saturating_sub(label.chars().count() - 1).max(at_t + 2), &label);
    }
    line("", &axis);

    for bar in bars {
        let (p, q) = (column(bar.p_latest), column(bar.q_earliest));
        let mut cells: Vec<char> = (0..WIDTH)
            .map(|at| {
                if at <= p {
                    '━'
                } else if at < q {
                    '░'
                } else {
                    '─'
                }
            })
            .collect();
        for mark in [at_t, at_release] {
            cells[mark] = '┼';
        }
        cells[p] = if bar.p_latest.get() < left { '◄' } else { 'P' };
        cells[q] = 'Q';
        line(&bar.host, &cells);
    }

    let (from, to) = (column(last_p), column(first_q));
    let mut cells = vec![' '; WIDTH];
    let label = format!(" {} ", first_q - last_p);
    if to > from {
        cells[from..=to].fill('·');
        cells[from] = '├';
        cells[to] = '┤';
    }
    let length = label.chars().count();
    let fits = to > from + length + 1;
    put(&mut cells, if fits { (from + to).saturating_sub(length) / 2 } else { to.max(from) + 1 }, &label);
    line("margin", &cells);
    text
}

/// Writes `text` over the cells from `at` on, moved to the left where it would not fit.
fn put(cells: &mut [char], at: usize, text: &str) {
    let length = text.chars().count().min(cells.len());
    let at = at.min(cells.len() - length);
    for (cell, character) in cells[at..].iter_mut().zip(text.chars()) {
        *cell = character;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(host: &str, p_latest: i64, q_earliest: i64) -> Bar {
        Bar { host: host.to_owned(), p_latest: Nanos::new(p_latest), q_earliest: Nanos::new(q_earliest) }
    }

    #[test]
    fn the_margin_lies_between_the_last_p_and_the_first_q() {
        let bars = [bar("a", -12_000, 41_000), bar("b", -3_000, 43_500), bar("c", -900_000, 40_000)];
        let picture = draw(&bars, Nanos::from_micros(40));
        let lines: Vec<&str> = picture.lines().collect();
        let find = |line: usize, mark: char| lines[line].chars().position(|c| c == mark).unwrap();
        assert_eq!(lines.len(), 5, "\n{picture}");
        assert_eq!(find(4, '├'), find(2, 'P'), "\n{picture}");
        assert_eq!(find(4, '┤'), find(3, 'Q'), "\n{picture}");
        assert!(lines[3].contains('◄') && lines[4].contains("43.00 µs"), "\n{picture}");
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "\n{picture}");
    }

    #[test]
    fn nothing_panics_at_the_limits() {
        for (p, q) in [(0, 0), (i64::MIN / 4, i64::MAX / 4), (5, -5), (1_000, 1_000)] {
            draw(&[bar("a", p, q), bar("b", q, p)], Nanos::ZERO);
        }
        draw(&[], Nanos::ZERO);
    }
}
