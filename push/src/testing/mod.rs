//! A server that takes what Loki takes and answers what a test wants: it reads HTTP, snappy and protobuf for real.

pub mod prometheus;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message as _;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::loki::PushRequest;

/// How the server answers one request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Status line and headers after `HTTP/1.1 `, each with its `\r\n`, and the body.
    Http(&'static str, &'static str),
    /// Never.
    Hang,
}

/// One request that came.
#[derive(Clone, Debug)]
pub struct Received {
    /// `POST /loki/api/v1/push`
    pub request: String,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    /// As it was sent.
    pub body: Vec<u8>,
}

impl Received {
    /// Empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    /// What was sent to Loki.
    pub fn loki(&self) -> std::io::Result<PushRequest> {
        Ok(PushRequest::decode(self.unsnapped()?.as_slice())?)
    }

    /// The body out of its snappy block.
    pub fn unsnapped(&self) -> std::io::Result<Vec<u8>> {
        Ok(snap::raw::Decoder::new().decompress_vec(&self.body)?)
    }

    /// The body out of its gzip member.
    pub fn ungzipped(&self) -> std::io::Result<Vec<u8>> {
        let mut message = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(self.body.as_slice()), &mut message)?;
        Ok(message)
    }
}

/// Ends when dropped.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    answers: Mutex<VecDeque<Answer>>,
    received: Mutex<Vec<Received>>,
    /// What could not be read.
    broken: Mutex<Vec<String>>,
}

impl Server {
    /// Answers 204 once `answers` are used up.
    pub async fn start(answers: impl IntoIterator<Item = Answer>, tls: Option<ServerConfig>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        shared.answers.lock().extend(answers);
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (shared, tls) = (Arc::clone(&shared), tls.clone());
                    tokio::spawn(async move {
                        let result = match tls {
                            None => shared.serve(stream).await,
                            Some(tls) => match tls.accept(stream).await {
                                Ok(stream) => shared.serve(stream).await,
                                Err(error) => Err(error),
                            },
                        };
                        if let Err(error) = result {
                            shared.broken.lock().push(error.to_string());
                        }
                    });
                }
            }
        });
        Ok(Self { address, shared, task })
    }

    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().clone()
    }

    /// Requests and connections that could not be read.
    pub fn broken(&self) -> Vec<String> {
        self.shared.broken.lock().clone()
    }

    /// All lines that came in requests, those that were refused included.
    pub fn lines(&self) -> Vec<String> {
        let pushes = self.received().into_iter().filter_map(|received| received.loki().ok());
        pushes
            .flat_map(|push| push.streams)
            .flat_map(|stream| stream.entries)
            .map(|entry| entry.line)
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(received) = read(&mut stream).await? {
            self.received.lock().push(received);
            let answer = self.answers.lock().pop_front();
            let (head, body) = match answer {
                Some(Answer::Http(head, body)) => (head, body),
                Some(Answer::Hang) => std::future::pending().await,
                None => ("204 No Content\r\n", ""),
            };
            let length = match body {
                "" => String::new(),
                body => format!("Content-Length: {}\r\n", body.len()),
            };
            let none = if body.is_empty() && !head.starts_with("204") {
                "Content-Length: 0\r\n"
            } else {
                ""
            };
            let text = format!("HTTP/1.1 {head}{length}{none}\r\n{body}");
            stream.write_all(text.as_bytes()).await?;
            stream.flush().await?;
        }
        Ok(())
    }
}

async fn read(stream: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Received>> {
    let mut request = String::new();
    if stream.read_line(&mut request).await? == 0 {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let request = request.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let received = Received { request, headers, body };
    if received.request.ends_with(crate::loki::PATH) {
        received.loki()?;
    }
    Ok(Some(received))
}
