//! Measures what a request costs.

fn main() {}
