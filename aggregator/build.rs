//! Sees to it that there are pages to embed: a checkout whose pages were never built still builds.

use std::fs;
use std::path::Path;

const PAGE: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Sonde</title>\
<p>The pages were not built into this program: run <code>make ui</code> and build again. \
The interface is there: <a href=\"/openapi.json\">/openapi.json</a>.</html>\n";

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=ui/dist");
    println!("cargo:rerun-if-changed=../migrations");
    let index = Path::new("ui/dist/index.html");
    if !index.exists() {
        println!("cargo:warning=the web pages are not built: run `make ui`, then build again");
        fs::create_dir_all("ui/dist")?;
        fs::write(index, PAGE)?;
    }
    Ok(())
}
