//! Compiles the contract without a protoc binary: protox is a Protobuf compiler in Rust.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=sonde");
    let descriptors = protox::compile(["sonde/v1/ingest.proto"], ["."])?;
    tonic_prost_build::configure()
        .bytes(".sonde.v1.Batch.body")
        .compile_fds(descriptors)?;
    Ok(())
}
