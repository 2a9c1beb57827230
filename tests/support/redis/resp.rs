//! The few lines of Redis's protocol (RESP 2) that tests speak by themselves, so that they rest neither on `redis-cli`
//! nor on the crate that is being tested.

use std::{fmt, io, net::SocketAddr};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// What Redis answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Text, or bytes that are text.
    Text(String),
    /// A number.
    Integer(i64),
    /// Nothing.
    Nil,
    /// Several.
    Several(Vec<Reply>),
    /// A refusal.
    Error(String),
}

impl Reply {
    /// The replies in it; it must hold several.
    pub fn several(&self) -> &[Reply] {
        match self {
            Self::Several(replies) => replies,
            other => panic!("several replies were awaited, not {other:?}"),
        }
    }

    /// Its texts, one after the other.
    pub fn texts(&self) -> Vec<String> {
        self.several().iter().map(Self::to_string).collect()
    }

    /// The value of a field, where fields and values alternate.
    pub fn field(&self, name: &str) -> Option<String> {
        let mut pairs = self.several().chunks(2);
        pairs.find(|pair| pair[0].to_string() == name).and_then(|pair| pair.get(1)).map(Self::to_string)
    }
}

/// As `redis-cli` shows it to a program: one line for each.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Error(text) => f.write_str(text),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Nil => Ok(()),
            Self::Several(replies) => {
                for (n, reply) in replies.iter().enumerate() {
                    let line_end = if n == 0 { "" } else { "\n" };
                    write!(f, "{line_end}{reply}")?;
                }
                Ok(())
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection to a Redis.
pub struct Resp(BufReader<Box<dyn Stream>>);

impl Resp {
    /// Connects, encrypted where there is a connector.
    ///
    /// # Errors
    /// Why it could not.
    pub async fn connect(address: SocketAddr, tls: Option<&TlsConnector>) -> io::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(tcp),
            Some(tls) => Box::new(tls.connect("localhost".try_into().expect("a name"), tcp).await?),
        };
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a command and returns its answer, which may be an error of Redis's.
    ///
    /// # Errors
    /// What is wrong with the connection.
    pub async fn command(&mut self, command: &[&str]) -> io::Result<Reply> {
        self.send(command).await?;
        self.next().await
    }

    /// Sends a command without waiting for its answer.
    ///
    /// # Errors
    /// What is wrong with the connection.
    pub async fn send(&mut self, command: &[&str]) -> io::Result<()> {
        let mut bytes = format!("*{}\r\n", command.len());
        for part in command {
            bytes.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
        self.0.write_all(bytes.as_bytes()).await?;
        self.0.flush().await
    }

    /// The next answer, or what a subscription brings.
    ///
    /// # Errors
    /// What is wrong with the connection.
    pub async fn next(&mut self) -> io::Result<Reply> {
        self.read().await
    }

    fn read(&mut self) -> BoxFuture<'_, io::Result<Reply>> {
        async move {
            let mut line = String::new();
            if self.0.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(io::ErrorKind::InvalidData)?;
            let number = || rest.parse::<i64>().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
            Ok(match kind {
                "+" => Reply::Text(rest.to_owned()),
                "-" => Reply::Error(rest.to_owned()),
                ":" => Reply::Integer(number()?),
                "$" => match usize::try_from(number()?) {
                    Ok(length) => Reply::Text(self.bulk(length).await?),
                    Err(_) => Reply::Nil,
                },
                "*" => match usize::try_from(number()?) {
                    Ok(count) => {
                        let mut replies = Vec::new();
                        for _ in 0..count {
                            replies.push(self.read().await?);
                        }
                        Reply::Several(replies)
                    }
                    Err(_) => Reply::Nil,
                },
                _ => return Err(io::ErrorKind::InvalidData.into()),
            })
        }
        .boxed()
    }

    async fn bulk(&mut self, length: usize) -> io::Result<String> {
        let mut bytes = vec![0; length + 2];
        self.0.read_exact(&mut bytes).await?;
        bytes.truncate(length);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
