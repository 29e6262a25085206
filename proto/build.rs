//! Compiles the contract without a protoc binary: protox is a Protobuf compiler in Rust.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=sonde");
    let descriptors = protox::compile(["sonde/v1/ingest.proto"], ["."])?;
    let description = std::path::Path::new(&std::env::var("OUT_DIR")?).join("description.bin");
    std::fs::write(description, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::Codec")
        .bytes(".sonde.v1.Batch.body")
        .compile_fds(descriptors)?;
    Ok(())
}
