//! What runs outside of the virtual machines.

mod apt;
mod image;
mod kernels;
mod qemu;
mod table;

pub use image::Image;
pub use kernels::{ALL, Kernel, Series, cache};
pub use qemu::{Ran, Verdict, boot};
pub use table::Table;
