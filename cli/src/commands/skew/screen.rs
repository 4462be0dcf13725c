//! What `coeval skew --watch` shows. Decides and draws; does no I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Cell, Chart, Dataset, GraphType, Paragraph, Row, Table, TableState};
use timesync::history::Track;
use timesync::report::{HostRow, Report};

use super::table::{HEADINGS, cells};
use crate::units::{format_offset_within, format_short};

/// Points of each host that are kept: ten minutes of one a second.
const KEPT: usize = 600;
/// The chart, when there is room.
const CHART_HEIGHT: u16 = 14;

const HARD: Color = Color::LightBlue;
const STATISTICAL: Color = Color::Yellow;
const ALERT: Style = Style::new().fg(Color::LightRed).add_modifier(Modifier::BOLD);

/// How the hosts are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Configured,
    Widest,
}

/// One moment of one host, in ns; `at` in s.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: f64,
    offset: i64,
    hard: i64,
    statistical: i64,
}

/// The state of the screen.
#[derive(Debug)]
pub struct Screen {
    report: Report,
    /// Why the report is an old one.
    problem: Option<String>,
    order: Order,
    /// The selected host's name: it stays selected when the order changes.
    selected: Option<String>,
    past: BTreeMap<String, VecDeque<Moment>>,
    /// Whose past from before this screen was asked for.
    fetched: BTreeSet<String>,
    now: f64,
}

impl Screen {
    /// A screen that shows nothing yet.
    pub fn new() -> Self {
        Screen {
            report: Report::default(),
            problem: None,
            order: Order::Configured,
            selected: None,
            past: BTreeMap::new(),
            fetched: BTreeSet::new(),
            now: 0.0,
        }
    }

    /// Takes a report of the moment `now`, in s, and remembers what it says.
    pub fn take(&mut self, report: Report, now: f64) {
        (self.now, self.problem) = (now, None);
        for row in &report.hosts {
            let Some(moment) = moment(row.offset_ns, row.hard_ns, row.statistical_ns, now) else { continue };
            self.remember(&row.host, moment);
        }
        if self.selected.as_ref().is_none_or(|name| report.hosts.iter().all(|row| row.host != *name)) {
            self.selected = report.hosts.first().map(|row| row.host.clone());
        }
        self.report = report;
    }

    /// Whose past is to be fetched: the selected host's, once.
    pub fn wanted(&mut self) -> Option<String> {
        let name = self.selected.clone()?;
        self.fetched.insert(name.clone()).then_some(name)
    }

    /// Takes what the server remembers of a host from before this screen; its clock, in s since 1970, is `ahead` of the
    /// screen's.
    pub fn take_past(&mut self, track: &Track, ahead: f64) {
        let past = self.past.entry(track.host.clone()).or_default();
        let first = past.front().map_or(f64::INFINITY, |first| first.at);
        for point in track.points.iter().rev() {
            let at = point.at_ms as f64 / 1e3 - ahead;
            let moment = moment(point.offset_ns, point.hard_ns, point.statistical_ns, at);
            if let Some(moment) = moment.filter(|moment| moment.at < first && past.len() < KEPT) {
                past.push_front(moment);
            }
        }
    }

    fn remember(&mut self, host: &str, moment: Moment) {
        let past = self.past.entry(host.to_owned()).or_default();
        if past.len() == KEPT {
            past.pop_front();
        }
        past.push_back(moment);
    }

    /// Says why there is no newer report.
    pub fn fail(&mut self, problem: String) {
        self.problem = Some(problem);
    }

    /// Takes a key; whether to go on.
    pub fn key(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if control => return false,
            KeyCode::Down | KeyCode::Char('j') => self.select(1),
            KeyCode::Up | KeyCode::Char('k') => self.select(-1),
            KeyCode::PageDown => self.select(10),
            KeyCode::PageUp => self.select(-10),
            KeyCode::Char('s') => {
                self.order = match self.order {
                    Order::Configured => Order::Widest,
                    Order::Widest => Order::Configured,
                };
            }
            _ => {}
        }
        true
    }

    fn select(&mut self, by: isize) {
        let rows = self.rows();
        let last = rows.len().saturating_sub(1);
        let to = self.index(&rows).saturating_add_signed(by).min(last);
        self.selected = rows.get(to).map(|row| row.host.clone());
    }

    fn index(&self, rows: &[&HostRow]) -> usize {
        rows.iter().position(|row| Some(&row.host) == self.selected.as_ref()).unwrap_or(0)
    }

    fn rows(&self) -> Vec<&HostRow> {
        let mut rows: Vec<&HostRow> = self.report.hosts.iter().collect();
        if self.order == Order::Widest {
            rows.sort_by_key(|row| std::cmp::Reverse(row.hard_ns.unwrap_or(i64::MAX)));
        }
        rows
    }

    /// Draws it all.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let chart = if frame.area().height >= CHART_HEIGHT + 8 { CHART_HEIGHT } else { 0 };
        let areas = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(1),
            Constraint::Length(chart),
            Constraint::Length(1),
        ]);
        let [title, table, why, chart, keys] = areas.areas(frame.area());
        frame.render_widget(self.title(), title);
        self.draw_table(frame, table);
        frame.render_widget(self.why(), why);
        self.draw_chart(frame, chart);
        let order = match self.order {
            Order::Configured => "widest first",
            Order::Widest => "as configured",
        };
        let help = format!(" q quit   ↑ ↓ select   s sort: {order} ");
        frame.render_widget(Paragraph::new(help).style(Style::new().add_modifier(Modifier::REVERSED)), keys);
    }

    fn title(&self) -> Paragraph<'static> {
        if let Some(problem) = &self.problem {
            return Paragraph::new(format!(" {problem}; what follows is old")).style(ALERT);
        }
        let hosts = &self.report.hosts;
        let bounded = hosts.iter().filter(|row| row.hard_ns.is_some()).count();
        let mut spans = vec![Span::raw(" CLOCK_REALTIME less the server's   ")];
        let count = format!("{bounded} of {} hosts bounded", hosts.len());
        spans.push(if bounded == hosts.len() { Span::raw(count) } else { Span::styled(count, ALERT) });
        if let Some((pair, hard)) = self.report.pairs.first().and_then(|pair| Some((pair, pair.hard_ns?))) {
            spans.push(Span::raw(format!("   widest pair {} - {} ± {}", pair.a, pair.b, format_short(hard))));
        }
        Paragraph::new(Line::from(spans))
    }

    fn draw_table(&self, frame: &mut Frame<'_>, area: Rect) {
        let rows = self.rows();
        let texts: Vec<[String; 10]> = rows.iter().map(|row| cells(row)).collect();
        let widest = |column: usize| {
            let cells = texts.iter().map(|cells| cells[column].chars().count());
            cells.chain([HEADINGS[column].chars().count()]).max().unwrap_or(0)
        };
        let width = |column: usize| u16::try_from(widest(column)).unwrap_or(u16::MAX);
        let widths = (0..HEADINGS.len()).map(|column| match column {
            0 => Constraint::Max(width(column)),
            _ => Constraint::Length(width(column)),
        });
        let lines = rows.iter().zip(&texts).map(|(row, cells)| {
            let cells = cells.iter().enumerate().map(|(column, text)| match column {
                0 => Cell::new(text.clone()),
                _ => Cell::new(Line::from(text.clone()).right_aligned()),
            });
            Row::new(cells).style(if row.hard_ns.is_some() { Style::new() } else { ALERT })
        });
        let headings = HEADINGS.iter().enumerate().map(|(column, heading)| match column {
            0 => Cell::new(*heading),
            _ => Cell::new(Line::from(*heading).right_aligned()),
        });
        let table = Table::new(lines, widths)
            .header(Row::new(headings).style(Style::new().add_modifier(Modifier::UNDERLINED)))
            .column_spacing(2)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::new().with_selected(Some(self.index(&rows)));
        frame.render_stateful_widget(table, area, &mut state);
    }

    /// Why the selected host has no bound.
    fn why(&self) -> Paragraph<'static> {
        let selected = self.report.hosts.iter().find(|row| Some(&row.host) == self.selected.as_ref());
        let why = selected.and_then(|row| Some(format!(" {} {}.", row.host, row.why.as_ref()?)));
        Paragraph::new(why.unwrap_or_default()).style(ALERT)
    }

    /// The selected host's offset and bounds, around the offset that it has now.
    fn draw_chart(&self, frame: &mut Frame<'_>, area: Rect) {
        let past = self.selected.as_ref().and_then(|name| Some((name, self.past.get(name)?)));
        let Some((name, past)) = past.filter(|_| area.height > 0) else { return };
        let Some(last) = past.back() else { return };
        let line = |of: fn(&Moment) -> i64| -> Vec<(f64, f64)> {
            past.iter().map(|moment| (moment.at - self.now, (of(moment) - last.offset) as f64)).collect()
        };
        let offset = line(|moment| moment.offset);
        let hard = [line(|moment| moment.offset - moment.hard), line(|moment| moment.offset + moment.hard)];
        let statistical = [
            line(|moment| moment.offset - moment.statistical),
            line(|moment| moment.offset + moment.statistical),
        ];
        let most = hard.iter().flatten().map(|(_, y)| y.abs()).fold(1.0, f64::max) * 1.05;
        let oldest = offset.first().map_or(-1.0, |(at, _)| at.min(-1.0));
        let dataset = |color: Color, data| {
            let dataset = Dataset::default().data(data).style(Style::new().fg(color));
            dataset.graph_type(GraphType::Line).marker(Marker::Braille)
        };
        let datasets = vec![
            dataset(HARD, &hard[0]),
            dataset(HARD, &hard[1]),
            dataset(STATISTICAL, &statistical[0]),
            dataset(STATISTICAL, &statistical[1]),
            dataset(Color::Reset, &offset),
        ];
        let side = format_short(most as i64);
        let now = format_offset_within(last.offset, last.hard);
        let title = Line::from(vec![
            Span::raw(format!(" {name}: offset, ")),
            Span::styled("hard", Style::new().fg(HARD)),
            Span::raw(" and "),
            Span::styled("statistical", Style::new().fg(STATISTICAL)),
            Span::raw(format!(" bound around {now} ")),
        ]);
        let chart = Chart::new(datasets)
            .block(Block::bordered().title(title))
            .x_axis(
                Axis::default().bounds([oldest, 0.0]).labels([format!("{oldest:.0} s"), "now".to_owned()]),
            )
            .y_axis(Axis::default().bounds([-most, most]).labels([
                format!("-{side}"),
                "0".to_owned(),
                format!("+{side}"),
            ]));
        frame.render_widget(chart, area);
    }
}

fn moment(offset: Option<i64>, hard: Option<i64>, statistical: Option<i64>, at: f64) -> Option<Moment> {
    let hard = hard?;
    Some(Moment { at, offset: offset?, hard, statistical: statistical.unwrap_or(hard) })
}

#[cfg(test)]
mod tests;
