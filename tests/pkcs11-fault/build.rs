//! Rust's library leaves a destructor with every thread that has called it, so what it is linked into must never be unloaded: the thread's
//! end would call what is no longer there.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rerun-if-changed=build.rs");
}
