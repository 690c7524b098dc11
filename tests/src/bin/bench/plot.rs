//! Pictures of results, as SVG below docs/benchmarks.

use std::ops::Range;

use plotters::{
    backend::SVGBackend,
    chart::ChartBuilder,
    coord::{combinators::IntoLogRange as _, ranged1d::IntoSegmentedCoord as _},
    drawing::{DrawingAreaErrorKind, IntoDrawingArea as _},
    element::{Circle, PathElement, Rectangle, Text},
    prelude::SegmentValue,
    series::LineSeries,
    style::{Color as _, IntoFont as _, RGBColor, WHITE},
};

use crate::statistics::Series;

const WIDTH: u32 = 820;
const TEXT: (&str, i32) = ("sans-serif", 14);
const TITLE: (&str, i32) = ("sans-serif", 17);
const DARK: RGBColor = RGBColor(40, 40, 40);

/// Told apart by those who do not see all colours (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// A picture.
#[derive(Debug)]
pub struct Plot {
    /// Name of its file, without its end.
    pub file: String,
    title: String,
    /// The picture; empty where it could not be drawn.
    pub svg: String,
}

/// A line of a plot.
#[derive(Debug)]
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// Abscissa and ordinate.
    pub points: Vec<(f64, f64)>,
}

/// A bar.
#[derive(Debug)]
pub struct Bar {
    /// What it is.
    pub name: String,
    /// Median, and the quartiles around it.
    pub value: f64,
    /// The quartiles.
    pub quartiles: Range<f64>,
    /// True for vmnat's own.
    pub is_own: bool,
}

impl Bar {
    /// The bar of a series.
    pub fn of(name: String, series: &Series, is_own: bool) -> Self {
        let quartiles = series.quantile(0.25)..series.quantile(0.75);
        Self { name, value: series.median(), quartiles, is_own }
    }
}

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

impl Plot {
    /// How Markdown shows it.
    pub fn reference(&self) -> String {
        format!("![{}](benchmarks/{}.svg)", self.title, self.file)
    }
}

fn draw(file: &str, title: &str, paint: impl FnOnce(&mut String) -> Drawn) -> Plot {
    let mut svg = String::new();
    if let Err(error) = paint(&mut svg) {
        eprintln!("bench: {file}.svg is not drawn: {error}");
        svg.clear();
    }
    Plot { file: file.to_owned(), title: title.to_owned(), svg }
}

/// Lines over an abscissa in powers of ten.
pub fn lines(file: &str, title: &str, axes: [&str; 2], lines: &[Line]) -> Plot {
    draw(file, title, |svg| {
        let points = || lines.iter().flat_map(|line| line.points.iter());
        let right = points().map(|(x, _)| *x).fold(10.0, f64::max);
        let top = points().map(|(_, y)| *y).fold(1.0, f64::max) * 1.15;
        let area = SVGBackend::with_string(svg, (WIDTH, 420)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, TITLE.into_font().color(&DARK))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((0.8..right * 1.3).log_scale(), 0.0..top)?;
        let [x, y] = axes;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(x)
            .y_desc(y)
            .x_label_formatter(&|x| crate::report::thousands(*x as u32))
            .label_style(TEXT.into_font().color(&DARK))
            .draw()?;
        for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), style))?
                .label(line.name.clone())
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
            chart.draw_series(line.points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(DARK.mix(0.3))
            .label_font(TEXT.into_font().color(&DARK))
            .position(plotters::chart::SeriesLabelPosition::UpperLeft)
            .draw()?;
        area.present()
    })
}

/// Horizontal bars with their spread, the first one on top.
pub fn bars(file: &str, title: &str, axis: &str, bars: &[Bar]) -> Plot {
    draw(file, title, |svg| {
        let height = u32::try_from(bars.len()).unwrap_or(u32::MAX).saturating_mul(30).saturating_add(110);
        let top = bars.iter().map(|bar| bar.quartiles.end).fold(1.0, f64::max) * 1.12;
        let area = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let last = bars.len().saturating_sub(1);
        let mut chart = ChartBuilder::on(&area)
            .caption(title, TITLE.into_font().color(&DARK))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(270)
            .build_cartesian_2d(0.0..top, (0..last).into_segmented())?;
        let name = |segment: &SegmentValue<usize>| match segment {
            SegmentValue::CenterOf(at) => last
                .checked_sub(*at)
                .and_then(|at| bars.get(at))
                .map_or_else(String::new, |bar| bar.name.clone()),
            SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(WHITE)
            .x_desc(axis)
            .y_labels(bars.len())
            .y_label_formatter(&name)
            .label_style(TEXT.into_font().color(&DARK))
            .draw()?;
        for (bar, at) in bars.iter().rev().zip(0_usize..) {
            let colour = if bar.is_own { RGBColor(0, 114, 178) } else { RGBColor(150, 150, 150) };
            let ends = [(0.0, SegmentValue::Exact(at)), (bar.value, SegmentValue::Exact(at + 1))];
            let mut rectangle = Rectangle::new(ends, colour.filled());
            rectangle.set_margin(5, 5, 0, 0);
            let middle = SegmentValue::CenterOf(at);
            let spread = vec![(bar.quartiles.start, middle.clone()), (bar.quartiles.end, middle.clone())];
            chart.draw_series([rectangle])?;
            chart.draw_series([PathElement::new(spread, DARK.stroke_width(2))])?;
            let label =
                if top < 100.0 { format!("  {:.1}", bar.value) } else { format!("  {:.0}", bar.value) };
            let place = (bar.quartiles.end, middle);
            chart.draw_series([Text::new(label, place, TEXT.into_font().color(&DARK))])?;
        }
        area.present()
    })
}
