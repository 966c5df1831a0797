//! What `ekm-bench` has measured, for people.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

/// A column: its head, its name in a row, and how many digits after the point; texts have none.
type Column = (&'static str, &'static str, Option<usize>);

/// Beside "ours" nothing is left but what the service itself does.
const CPU_TIME: [Column; 12] = [
    ("custody", "custody", None),
    ("verb", "verb", None),
    ("protocol", "protocol", None),
    ("CPU us", "server_cpu_us", Some(1)),
    ("floor us", "floor_cpu_us", Some(1)),
    ("device us", "device_cpu_us", Some(1)),
    ("ours us", "above_floor_and_device_us", Some(1)),
    ("x floor", "times_the_floor", Some(2)),
    ("per CPU s", "requests_per_cpu_s", Some(0)),
    ("per s", "requests_per_s", Some(0)),
    ("errors", "errors", Some(0)),
    ("idle RSS MiB", "idle_rss_mib", Some(1)),
];

const INSTRUCTIONS: [Column; 8] = [
    ("custody", "custody", None),
    ("verb", "verb", None),
    ("protocol", "protocol", None),
    ("instructions", "instructions", Some(0)),
    ("spread %", "spread_percent", Some(1)),
    ("floor", "floor_instructions", Some(0)),
    ("above the floor", "above_the_floor", Some(0)),
    ("x floor", "times_the_floor", Some(2)),
];

/// What it costs in CPU time.
pub fn cpu_time(rows: &[Value]) -> String {
    table(&CPU_TIME, rows)
        + "\nCPU: a request's, of all threads, and of the HSM's worker. floor: the same listener, TLS and HTTP with a fixed answer.\n\
           device: SoftHSM's calls alone, in a loop. ours: what is above floor and device. per CPU s: what one core does, 1 / CPU.\n"
}

/// What it costs in instructions.
pub fn instructions(rows: &[Value]) -> String {
    table(&INSTRUCTIONS, rows)
        + "\nof one request, outside the kernel; spread: between the least and the most of all times\n"
}

fn table(columns: &[Column], rows: &[Value]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns.iter().map(|(head, ..)| *head));
    for row in rows {
        table.add_row(columns.iter().map(|(_, name, digits)| match digits {
            None => row[name].as_str().unwrap_or_default().to_owned(),
            Some(digits) => row[name].as_f64().map_or("-".into(), |value| format!("{value:.digits$}")),
        }));
    }
    for (place, (.., digits)) in columns.iter().enumerate() {
        if let (Some(column), Some(_)) = (table.column_mut(place), digits) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nobody_has_measured_is_a_dash_and_no_zero() {
        let row = json!({
            "custody": "softhsm", "verb": "wrap", "protocol": "HTTP/2", "server_cpu_us": 60.0, "floor_cpu_us": 20.04, "device_cpu_us": 28.0,
            "above_floor_and_device_us": 12.0, "times_the_floor": 3.0, "requests_per_cpu_s": 16666.7, "errors": 0,
        });
        let mut sign = row.clone();
        (sign["device_cpu_us"], sign["above_floor_and_device_us"]) = (Value::Null, Value::Null);
        let text = cpu_time(&[row, sign]);
        let cells: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            cells[1],
            ["softhsm", "wrap", "HTTP/2", "60.0", "20.0", "28.0", "12.0", "3.00", "16667", "-", "0", "-"]
        );
        assert_eq!(cells[2][3..7], ["60.0", "20.0", "-", "-"]);
    }
}
