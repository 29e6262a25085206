//! The first process of a virtual machine of the kernel matrix. Of no use anywhere else.

fn main() {
    sonde_kernels::guest::main();
}
