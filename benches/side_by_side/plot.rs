//! The plots beside `RESULTS.md`, as SVG.

use crate::drain::{Drain, Run};
use crate::latency::{Latency, Micros, millis};
use crate::spread::Spread;
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::path::Path;
use std::time::Duration;

const SIZE: (u32, u32) = (960, 480);
const FONT: &str = "sans-serif";

type Canvas<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// A bar of each group; `None` leaves a gap.
type Series = (String, Vec<Option<f64>>);

/// The relay in the strongest colour, floors in greys, the others in a palette that colour-blind people
/// tell apart.
fn colour(name: &str, index: usize) -> RGBColor {
    const OTHERS: [RGBColor; 7] = [
        RGBColor(0, 114, 178),
        RGBColor(230, 159, 0),
        RGBColor(0, 158, 115),
        RGBColor(204, 121, 167),
        RGBColor(86, 180, 233),
        RGBColor(170, 130, 60),
        RGBColor(120, 94, 240),
    ];
    match name {
        "postrider" => RGBColor(213, 94, 0),
        name if name.starts_with("floor") => {
            let grey = u8::try_from(110 + 30 * (index % 4)).unwrap_or(u8::MAX);
            RGBColor(grey, grey, grey)
        }
        _ => OTHERS[index % OTHERS.len()],
    }
}

fn canvas(path: &Path) -> Result<Canvas<'_>> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    Ok(root)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("plot: {error}")
}

/// Bars in groups: a group a label, a bar a series.
fn bars(path: &Path, title: &str, labels: &[String], series: &[Series]) -> Result<()> {
    let root = canvas(path)?;
    let most = series.iter().flat_map(|(_, values)| values.iter().flatten()).copied().fold(0.0, f64::max);
    let groups = i32::try_from(labels.len())?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 18))
        .margin(10)
        .margin_right(290)
        .x_label_area_size(30)
        .y_label_area_size(80)
        .build_cartesian_2d(0..groups, 0.0..most * 1.15)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_label_formatter(&|value| crate::spread::number(*value, 0))
        .label_style((FONT, 14))
        .draw()
        .map_err(failed)?;
    // Bars are placed by pixels within the group's segment.
    let area = chart.plotting_area().strip_coord_spec();
    let (width, height) = area.dim_in_pixel();
    let group = f64::from(width) / f64::from(groups);
    #[expect(clippy::cast_precision_loss, reason = "a few series")]
    let bar = group * 0.85 / series.len() as f64;
    for (index, (name, values)) in series.iter().enumerate() {
        let colour = colour(name, index);
        for (at, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "pixels")]
            let (left, top) = (
                (group * (at as f64 + 0.075) + bar * index as f64) as i32,
                (f64::from(height) * (1.0 - value / (most * 1.15))) as i32,
            );
            #[expect(clippy::cast_possible_truncation, reason = "pixels")]
            let right = left + (bar as i32 - 1).max(1);
            let bottom = i32::try_from(height)?;
            area.draw(&Rectangle::new([(left, top), (right, bottom)], colour.filled())).map_err(failed)?;
        }
    }
    for (at, label) in labels.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "pixels")]
        let left = (group * (at as f64 + 0.075)) as i32;
        root.draw(&Text::new(label.clone(), (90 + left, i32::try_from(SIZE.1)? - 32), (FONT, 14)))
            .map_err(failed)?;
    }
    legend(&root, series.iter().map(|(name, _)| name.as_str()))?;
    root.present().map_err(failed)
}

/// In the upper right corner.
fn legend<'n>(root: &Canvas<'_>, names: impl Iterator<Item = &'n str>) -> Result<()> {
    for (index, name) in names.enumerate() {
        let y = 50 + 18 * i32::try_from(index)?;
        let x = i32::try_from(SIZE.0)? - 270;
        root.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], colour(name, index).filled()))
            .map_err(failed)?;
        root.draw(&Text::new(name.to_owned(), (x + 18, y), (FONT, 14))).map_err(failed)?;
    }
    Ok(())
}

/// By size of transaction, `value` of each participant.
fn by_size(drains: &[Drain], skip_floors: bool, value: impl Fn(&Run) -> f64) -> (Vec<String>, Vec<Series>) {
    let labels = drains
        .iter()
        .map(|drain| format!("{}-row transactions", crate::spread::number(drain.size.into(), 0)));
    let mut names: Vec<String> = Vec::new();
    for name in drains.iter().flat_map(Drain::names) {
        if !(names.contains(&name) || skip_floors && name.starts_with("floor")) {
            names.push(name);
        }
    }
    let series = names.into_iter().map(|name| {
        let of = |drain: &Drain| Spread::of(drain.of(&name).map(&value)).map(|spread| spread.median);
        let values = drains.iter().map(of).collect();
        (name, values)
    });
    (labels.collect(), series.collect())
}

pub(crate) fn drain(drains: &[Drain], path: &Path) -> Result<()> {
    let (labels, series) = by_size(drains, false, |run| run.rate);
    bars(path, "Drain of a backlog, rows a second (more is better)", &labels, &series)
}

pub(crate) fn cpu(drains: &[Drain], path: &Path) -> Result<()> {
    let seconds = |cpu: Duration, rows: u32| cpu.as_secs_f64() * 1e6 / f64::from(rows);
    let (labels, series) =
        by_size(drains, false, |run| seconds(run.cpu.client + run.cpu.postgres + run.cpu.nats, run.rows));
    bars(
        path,
        "CPU of client, Postgres and nats-server, seconds a million events (less is better)",
        &labels,
        &series,
    )
}

pub(crate) fn wal(drains: &[Drain], path: &Path) -> Result<()> {
    let (labels, series) = by_size(drains, true, |run| run.wal);
    bars(path, "WAL that draining writes, bytes an event (less is better)", &labels, &series)
}

/// Median and 99th percentile by rate, on a logarithmic scale.
pub(crate) fn latency(latencies: &[Latency], path: &Path) -> Result<()> {
    let root = canvas(path)?;
    let mut names: Vec<&String> = latencies.iter().flat_map(|latency| latency.faults.keys()).collect();
    names.sort();
    names.dedup();
    let rates = latencies.iter().map(|latency| f64::from(latency.rate));
    let (least, most) = (rates.clone().fold(f64::INFINITY, f64::min), rates.fold(0.0, f64::max));
    let mut chart = ChartBuilder::on(&root)
        .caption("Due → consumer by rate, ms: p50 solid, p99 thin (less is better)", (FONT, 18))
        .margin(10)
        .margin_right(290)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((least * 0.9..most * 1.1).log_scale(), (0.1..20_000.0).log_scale())
        .map_err(failed)?;
    chart.configure_mesh().x_desc("rows a second").label_style((FONT, 14)).draw().map_err(failed)?;
    for (index, name) in names.iter().enumerate() {
        let colour = colour(name, index);
        for (quantile, width) in [(0.5, 3), (0.99, 1)] {
            let points: Vec<_> = latencies
                .iter()
                .filter_map(|latency| {
                    let value = Spread::of(
                        latency
                            .rounds
                            .get(*name)?
                            .iter()
                            .map(|round| millis(round.value_at_quantile(quantile))),
                    )?;
                    Some((f64::from(latency.rate), value.median.max(0.1)))
                })
                .collect();
            chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(width))).map_err(failed)?;
            chart
                .draw_series(points.into_iter().map(|point| Circle::new(point, 3, colour.filled())))
                .map_err(failed)?;
        }
    }
    legend(&root, names.iter().map(|name| name.as_str()))?;
    root.present().map_err(failed)
}

/// The share of rows that took at most so long, all rounds together.
pub(crate) fn distribution(latency: &Latency, path: &Path) -> Result<()> {
    let root = canvas(path)?;
    let title = format!("Due → consumer at {} rows a second", crate::spread::number(latency.rate.into(), 0));
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 18))
        .margin(10)
        .margin_right(290)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((0.1..20_000.0).log_scale(), 0.0..100.0)
        .map_err(failed)?;
    chart.configure_mesh().x_desc("ms").y_desc("% of rows").label_style((FONT, 14)).draw().map_err(failed)?;
    let names: Vec<&String> =
        latency.faults.keys().filter(|name| latency.rounds.contains_key(*name)).collect();
    for (index, name) in names.iter().enumerate() {
        let Some(rounds) = latency.rounds.get(*name) else { continue };
        let mut all = Micros::new_with_bounds(1, 60_000_000, 3)?;
        for round in rounds {
            all.add(round)?;
        }
        let points = (0..=1000).map(|permille| {
            let share = f64::from(permille) / 1000.0;
            (millis(all.value_at_quantile(share)).max(0.1), share * 100.0)
        });
        chart.draw_series(LineSeries::new(points, colour(name, index).stroke_width(2))).map_err(failed)?;
    }
    legend(&root, names.iter().map(|name| name.as_str()))?;
    root.present().map_err(failed)
}
