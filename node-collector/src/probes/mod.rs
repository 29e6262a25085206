//! One file each: name, columns, help, decoder. A new probe is its file and one line here.

pub mod packetloss;
