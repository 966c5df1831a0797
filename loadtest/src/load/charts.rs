//! Plots as SVG.

use std::error::Error;

use plotters::prelude::*;

/// In pixels; the page scales them.
const SIZE: (u32, u32) = (960, 320);

const FONT: (&str, u32) = ("sans-serif", 16);

/// Values over x. Where there is none the line has a gap.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, Option<f64>)>,
}

/// A plot.
pub struct Chart<'a> {
    pub x: &'a str,
    pub y: &'a str,
    pub lines: Vec<Line>,
    /// Latencies have long tails.
    pub is_log: bool,
    /// Where the phases begin.
    pub marks: Vec<f64>,
}

/// Told apart by those who do not see all colours too (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
];

impl Chart<'_> {
    /// As an SVG element.
    pub fn svg(&self) -> Result<String, Box<dyn Error>> {
        let mut svg = String::new();
        {
            let points =
                || self.lines.iter().flat_map(|line| line.points.iter().filter_map(|(x, y)| Some((*x, (*y)?))));
            let highest = points().map(|(_, y)| y).fold(0.0, f64::max).max(1e-3);
            let lowest = points().map(|(_, y)| y).filter(|y| *y > 0.0).fold(highest, f64::min);
            let xs = || self.lines.iter().flat_map(|line| line.points.iter().map(|(x, _)| *x));
            let (from, to) = (xs().fold(f64::INFINITY, f64::min).min(0.0), xs().fold(0.0, f64::max).max(1e-3));
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let mut builder = ChartBuilder::on(&root);
            builder.margin(10).x_label_area_size(44).y_label_area_size(72);
            if self.is_log {
                let range = (lowest.max(1e-2) * 0.8..highest * 1.3).log_scale();
                let mut chart = builder.build_cartesian_2d(from..to, range)?;
                self.draw(&mut chart, lowest.max(1e-2) * 0.8, highest * 1.3)?;
            } else {
                let mut chart = builder.build_cartesian_2d(from..to, 0.0..highest * 1.05)?;
                self.draw(&mut chart, 0.0, highest * 1.05)?;
            }
            root.present()?;
        }
        Ok(svg)
    }

    fn draw<'a, Y>(
        &self,
        chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<plotters::coord::types::RangedCoordf64, Y>>,
        bottom: f64,
        top: f64,
    ) -> Result<(), Box<dyn Error>>
    where
        Y: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
    {
        let figure = |value: &f64| crate::report_table::figure(*value);
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&figure)
            .y_label_formatter(&figure)
            .label_style(FONT)
            .axis_desc_style(FONT)
            .draw()?;
        for mark in &self.marks {
            let line = vec![(*mark, bottom), (*mark, top)];
            chart.draw_series(std::iter::once(PathElement::new(line, BLACK.mix(0.25))))?;
        }
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            let mut named = false;
            for part in line.points.split(|(_, y)| y.is_none()).filter(|part| !part.is_empty()) {
                let part = part.iter().filter_map(|(x, y)| Some((*x, (*y)?.max(bottom))));
                let series = chart.draw_series(LineSeries::new(part, style).point_size(if line.points.len() < 20 {
                    3
                } else {
                    0
                }))?;
                if !named {
                    named = true;
                    let colour = *colour;
                    series
                        .label(&line.name)
                        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
                }
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.2))
            .label_font(FONT)
            .draw()?;
        Ok(())
    }
}
