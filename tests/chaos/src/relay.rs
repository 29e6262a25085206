//! A way for TCP that can be cut: what goes through it is held, or its connections are reset.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Connections stand, nothing gets through.
    Hole,
    /// Connections are reset, new ones too.
    Reset,
}

/// Of one node.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
}

impl Relay {
    /// Runs on a thread of its own until this process ends.
    pub fn start(to: SocketAddr) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (mode, modes) = watch::channel(Mode::Pass);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("relay".into()).spawn(move || {
            if let Err(error) = runtime.block_on(serve(listener, to, modes)) {
                eprintln!("relay: {error}");
            }
        })?;
        Ok(Self { address, mode })
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn serve(listener: std::net::TcpListener, to: SocketAddr, modes: watch::Receiver<Mode>) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (near, _) = listener.accept().await?;
        let modes = modes.clone();
        tokio::spawn(async move {
            if *modes.borrow() == Mode::Reset {
                return reset(near);
            }
            let Ok(far) = TcpStream::connect(to).await else {
                return reset(near);
            };
            carry(near, far, modes).await;
        });
    }
}

/// Both ways, until one end is gone or it is cut.
async fn carry(near: TcpStream, far: TcpStream, mut modes: watch::Receiver<Mode>) {
    let ends = [&near, &far].map(|stream| stream.set_zero_linger());
    debug_assert!(ends.iter().all(Result::is_ok), "a socket takes the option");
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let (up, down) = (modes.clone(), modes.clone());
    let copies = async {
        // When one direction is over both are: neither end of a stream goes on without the other.
        tokio::select! {
            _ = copy(near_in, far_out, up) => {}
            _ = copy(far_in, near_out, down) => {}
        }
    };
    let cut = async { modes.wait_for(|mode| *mode == Mode::Reset).await.is_ok() };
    // Dropped without lingering, both are reset: also in the middle of a frame.
    tokio::select! { () = copies => {}, _ = cut => {} }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if modes.wait_for(|mode| *mode != Mode::Hole).await.is_err() {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}

fn reset(stream: TcpStream) {
    // The end of a stream that was never used: without lingering it is a reset.
    let _ = stream.set_zero_linger();
}

/// How long a cut lasts at most.
pub const LONGEST: Duration = Duration::from_millis(1500);
