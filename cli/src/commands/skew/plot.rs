//! Bounds over time and round trips, as an SVG image.
//!
//! Each host gets three charts: its offset with the two bounds around it, the bounds' half-widths by themselves (an offset
//! that drifts by milliseconds hides microseconds), and its round trips. Colours are of Okabe and Ito's palette, which
//! stays distinct for colour-blind eyes.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;
use timesync::history::{Point, Track};

use crate::units::{format_offset_within, format_short};

/// More hosts would make the image too tall to be of use.
pub const MOST_HOSTS: usize = 12;

const WIDTH: u32 = 1200;
const TITLE: u32 = 56;
/// A host's charts.
const ROW: u32 = 380;
const LEFT: u32 = 800;

const OFFSET: RGBColor = RGBColor(0, 0, 0);
const HARD: RGBColor = RGBColor(0, 114, 178);
const STATISTICAL: RGBColor = RGBColor(230, 159, 0);
const ROUND_TRIPS: RGBColor = RGBColor(0, 158, 115);

/// Bins of a histogram, evenly spread over the logarithms.
const BINS: usize = 48;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error + Send + Sync>>;

/// Draws the tracks of at most [`MOST_HOSTS`] hosts.
///
/// # Errors
/// When an area is too small for its charts, which its constants rule out.
pub fn draw(tracks: &[Track]) -> Result<String, Box<dyn Error + Send + Sync>> {
    let tracks = &tracks[..tracks.len().min(MOST_HOSTS)];
    let mut image = String::new();
    let height = TITLE + ROW * u32::try_from(tracks.len().max(1))?;
    {
        let root = SVGBackend::with_string(&mut image, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (title, charts) = root.split_vertically(TITLE);
        let points = || tracks.iter().flat_map(|track| &track.points);
        let end = points().map(|point| point.at_ms).max();
        let said = end.map_or_else(
            || "no history yet: the server keeps a point every ten seconds".to_owned(),
            |end| format!("up to {} UTC", date(end)),
        );
        text(&title, "CLOCK_REALTIME of each host less the server's", (20, 10), 20)?;
        text(&title, &said, (20, 34), 14)?;
        let start = points().map(|point| point.at_ms).min();
        for (track, area) in tracks.iter().zip(charts.split_evenly((tracks.len().max(1), 1))) {
            let (left, right) = area.split_horizontally(LEFT);
            let (upper, lower) = left.split_vertically(ROW * 6 / 10);
            let ago = Ago::over(start.unwrap_or(0), end.unwrap_or(0));
            offsets(&upper, track, ago)?;
            half_widths(&lower, track, ago)?;
            round_trips(&right, track)?;
        }
        root.present()?;
    }
    Ok(image)
}

fn text(area: &Area<'_>, text: &str, at: (i32, i32), size: u32) -> Drawn {
    Ok(area.draw(&Text::new(text.to_owned(), at, ("sans-serif", size)))?)
}

/// The offset and its bounds, less the median offset.
fn offsets(area: &Area<'_>, track: &Track, ago: Ago) -> Drawn {
    let mut sorted: Vec<i64> = track.points.iter().filter_map(|point| point.offset_ns).collect();
    sorted.sort_unstable();
    let Some(median) = sorted.get(sorted.len() / 2).copied() else {
        return text(area, &format!("{}: no bound in this time", track.host), (20, 20), 16);
    };
    let around = |point: &Point, half: Option<i64>| {
        let (middle, half) = ((point.offset_ns? - median) as f64, half? as f64);
        Some((middle - half, middle + half))
    };
    let limits: Vec<(f64, f64)> =
        track.points.iter().filter_map(|point| around(point, point.hard_ns)).collect();
    let most = limits.iter().map(|(lo, hi)| lo.abs().max(hi.abs())).fold(1.0, f64::max) * 1.1;
    let mut halves: Vec<i64> = track.points.iter().filter_map(|point| point.hard_ns).collect();
    halves.sort_unstable();
    let usual = halves.get(halves.len() / 2).copied().unwrap_or(1);
    let title = match median {
        0 => format!("{}: offset", track.host),
        _ => format!("{}: offset, less its median of {}", track.host, format_offset_within(median, usual)),
    };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(84)
        .build_cartesian_2d(ago.axis(), -most..most)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_label_formatter(&|at| ago.label(*at))
        .y_label_formatter(&|value| signed(*value))
        .label_style(("sans-serif", 12))
        .draw()?;
    let runs = runs(&track.points);
    for (label, color, opacity, half) in [
        ("hard bound", HARD, 0.25, (|point| point.hard_ns) as fn(&Point) -> Option<i64>),
        ("statistical bound", STATISTICAL, 0.45, |point| point.statistical_ns),
    ] {
        let mut series = Vec::new();
        for run in &runs {
            let limits: Vec<(f64, (f64, f64))> = run
                .iter()
                .filter_map(|point| Some((ago.at(point.at_ms), around(point, half(point))?)))
                .collect();
            let upper = limits.iter().map(|(at, (_, hi))| (*at, *hi));
            let lower = limits.iter().rev().map(|(at, (lo, _))| (*at, *lo));
            series.push(Polygon::new(upper.chain(lower).collect::<Vec<_>>(), color.mix(opacity).filled()));
        }
        chart
            .draw_series(series)?
            .label(label)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 16, y + 5)], color.mix(opacity).filled()));
    }
    let lines = runs.iter().map(|run| {
        let line =
            run.iter().filter_map(|point| Some((ago.at(point.at_ms), (point.offset_ns? - median) as f64)));
        PathElement::new(line.collect::<Vec<_>>(), OFFSET.stroke_width(1))
    });
    chart
        .draw_series(lines)?
        .label("offset")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], OFFSET.stroke_width(1)));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 12))
        .draw()?;
    Ok(())
}

/// The bounds' half-widths on a logarithmic axis.
fn half_widths(area: &Area<'_>, track: &Track, ago: Ago) -> Drawn {
    let widths = track.points.iter().flat_map(|point| [point.hard_ns, point.statistical_ns]).flatten();
    let Some((least, most)) = logarithms(widths.map(|width| width as f64)) else { return Ok(()) };
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(84)
        .build_cartesian_2d(ago.axis(), least..most)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_label_formatter(&|at| ago.label(*at))
        .x_desc("time before the end")
        .y_label_formatter(&|log| power(*log))
        .y_desc("half-width")
        .y_labels(5)
        .label_style(("sans-serif", 12))
        .draw()?;
    let runs = runs(&track.points);
    for (color, stroke, half) in [
        (HARD, 2, (|point| point.hard_ns) as fn(&Point) -> Option<i64>),
        (STATISTICAL, 1, |point| point.statistical_ns),
    ] {
        chart.draw_series(runs.iter().map(|run| {
            let line = run.iter().filter_map(|point| Some((ago.at(point.at_ms), log(half(point)? as f64))));
            PathElement::new(line.collect::<Vec<_>>(), color.stroke_width(stroke))
        }))?;
    }
    Ok(())
}

/// How many round trips took how long, on a logarithmic axis.
fn round_trips(area: &Area<'_>, track: &Track) -> Drawn {
    let trips = track.round_trips.iter().map(|(upto, _)| *upto as f64);
    let Some((least, most)) = logarithms(trips) else {
        return text(area, "no round trips", (20, 20), 16);
    };
    let width = (most - least) / BINS as f64;
    let mut bins = [0_u64; BINS];
    for (upto, count) in &track.round_trips {
        let bin = ((log(*upto as f64) - least) / width) as usize;
        bins[bin.min(BINS - 1)] += count;
    }
    let all: u64 = bins.iter().sum();
    let tallest = bins.iter().max().copied().unwrap_or(0).max(1) as f64 * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{all} round trips"), ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d(least..most, 0.0..tallest)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_label_formatter(&|log| power(*log))
        .x_desc("round trip")
        .x_labels(4)
        .y_label_formatter(&|count| format!("{count:.0}"))
        .y_desc("exchanges")
        .label_style(("sans-serif", 12))
        .draw()?;
    chart.draw_series(bins.iter().enumerate().filter(|(_, count)| **count > 0).map(|(bin, count)| {
        let from = least + bin as f64 * width;
        Rectangle::new([(from, 0.0), (from + width, *count as f64)], ROUND_TRIPS.filled())
    }))?;
    Ok(())
}

/// Points that follow each other without a gap: all with a bound, and no more than three steps apart.
fn runs(points: &[Point]) -> Vec<Vec<Point>> {
    let mut steps: Vec<i64> = points.windows(2).map(|pair| pair[1].at_ms - pair[0].at_ms).collect();
    steps.sort_unstable();
    let longest = steps.get(steps.len() / 2).map_or(i64::MAX, |median| median.saturating_mul(3));
    let mut runs: Vec<Vec<Point>> = Vec::new();
    let mut last: Option<i64> = None;
    for point in points {
        if point.hard_ns.is_none() {
            last = None;
            continue;
        }
        match (last, runs.last_mut()) {
            (Some(before), Some(run)) if point.at_ms - before <= longest => run.push(*point),
            _ => runs.push(vec![*point]),
        }
        last = Some(point.at_ms);
    }
    runs
}

/// Time before the end, in the unit that gives round numbers.
#[derive(Clone, Copy)]
struct Ago {
    start_ms: i64,
    end_ms: i64,
    unit_ms: f64,
    unit: &'static str,
}

impl Ago {
    fn over(start_ms: i64, end_ms: i64) -> Self {
        let (unit, unit_ms) = match end_ms - start_ms {
            ..240_000 => ("s", 1e3),
            240_000..14_400_000 => ("min", 60e3),
            14_400_000..345_600_000 => ("h", 3_600e3),
            _ => ("d", 86_400e3),
        };
        Ago { start_ms, end_ms, unit_ms, unit }
    }

    /// From start to end, at least a second.
    fn axis(self) -> std::ops::Range<f64> {
        self.at(self.start_ms.min(self.end_ms - 1_000))..0.0
    }

    /// Not positive.
    fn at(self, at_ms: i64) -> f64 {
        (at_ms - self.end_ms) as f64 / self.unit_ms
    }

    fn label(self, at: f64) -> String {
        let number = format!("{:.1}", at.abs());
        match number.trim_end_matches(".0") {
            "0" => "0".to_owned(),
            number => format!("-{number} {}", self.unit),
        }
    }
}

fn log(value: f64) -> f64 {
    value.max(1.0).log10()
}

/// From the least to the most, as powers of ten, with some room around; none of none.
fn logarithms(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (least, most) = values.map(log).fold(None, |range: Option<(f64, f64)>, value| {
        Some(range.map_or((value, value), |(least, most)| (least.min(value), most.max(value))))
    })?;
    let room = ((most - least) * 0.05).max(0.05);
    Some((least - room, most + room))
}

fn power(log: f64) -> String {
    format_short(10_f64.powf(log).round() as i64)
}

fn signed(nanos: f64) -> String {
    let sign = if nanos < 0.0 { "-" } else { "+" };
    if nanos == 0.0 { "0".to_owned() } else { format!("{sign}{}", format_short(nanos.abs().round() as i64)) }
}

/// `2026-11-22 20:21:38`, of ms since 1970.
fn date(at_ms: i64) -> String {
    let seconds = at_ms.div_euclid(1_000);
    let (mut day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut year = 1970;
    while day >= 365 + i64::from(leap(year)) {
        day -= 365 + i64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while month < 11 && day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year}-{:02}-{:02} {hour:02}:{minute:02}:{:02}", month + 1, day + 1, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An hour of a host whose offset drifts, with an outage in the middle.
    fn track(host: &str) -> Track {
        let points = (0..360).map(|step: i64| {
            let bounded = !(150..170).contains(&step);
            Point {
                at_ms: 1_700_000_000_000 + step * 10_000,
                offset_ns: bounded.then_some(35_000_000 + step * 20),
                hard_ns: bounded.then_some(1_300 + 400 * (step % 7)),
                statistical_ns: bounded.then_some(300 + 10 * (step % 5)),
                rtt_min_ns: bounded.then_some(2_100),
                rtt_max_ns: bounded.then_some(40_000),
                exchanges: 160,
                lost: 0,
            }
        });
        let round_trips =
            (0..60).map(|step: u32| (2_000 + u64::from(step * step) * 20, u64::from(60 - step))).collect();
        Track { host: host.to_owned(), points: points.collect(), round_trips }
    }

    /// Its texts.
    fn parsed(image: &str) -> (String, usize, usize) {
        let document = roxmltree::Document::parse(image).unwrap();
        let count = |name: &str| document.descendants().filter(|node| node.has_tag_name(name)).count();
        let texts =
            document.descendants().filter_map(|node| node.is_text().then(|| node.text())?).map(str::trim);
        (
            texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n"),
            count("polygon"),
            count("rect"),
        )
    }

    #[test]
    fn the_image_is_well_formed_and_holds_what_it_should() {
        let mut silent = track("<silent & \"odd\">");
        silent.points.iter_mut().for_each(|point| point.offset_ns = None);
        silent.points.iter_mut().for_each(|point| (point.hard_ns, point.statistical_ns) = (None, None));
        silent.round_trips.clear();
        let image = draw(&[track("db1"), silent]).unwrap();
        let (texts, polygons, rects) = parsed(&image);
        for text in [
            "CLOCK_REALTIME of each host less the server's",
            "up to 2023-11-14 23:13:10 UTC",
            "db1: offset, less its median of +35.0038 ms",
            "<silent & \"odd\">: no bound in this time",
            "hard bound",
            "statistical bound",
            "half-width",
            "time before the end",
            "1830 round trips",
            "no round trips",
            "-30 min",
        ] {
            assert!(texts.lines().any(|line| line == text), "no {text:?} in\n{texts}");
        }
        // Two bounds before the outage and two after it; at least a dozen bins beside background and legend.
        assert_eq!(polygons, 4);
        assert!(rects > 12, "{rects} rectangles");
        for color in ["#0072B2", "#E69F00", "#009E73"] {
            assert!(image.contains(color), "{color}");
        }
    }

    #[test]
    fn an_image_of_nothing_says_so() {
        for tracks in [vec![], vec![Track { host: "a".to_owned(), ..Track::default() }]] {
            let (texts, ..) = parsed(&draw(&tracks).unwrap());
            assert!(texts.contains("no history yet"), "{texts}");
        }
        let one = Track { points: track("a").points[..1].to_vec(), ..track("a") };
        parsed(&draw(&[one]).unwrap());
    }

    #[test]
    fn dates() {
        for (at_ms, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399_000, "2000-02-28 23:59:59"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (1_798_761_599_999, "2026-12-31 23:59:59"),
        ] {
            assert_eq!(date(at_ms), text);
        }
    }
}
