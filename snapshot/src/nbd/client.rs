//! A small blocking client: one request at a time, simple replies.

use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use socket2::Socket;

use super::Endpoint;
use super::wire::{
    self, ErrorCode, MAGIC, MAX_OPTION, MAX_PAYLOAD, MAX_STRING, OPTION_MAGIC, OPTION_REPLY_MAGIC, Request,
    command, command_flag, handshake_flag, info, option, option_reply, transmission_flag,
};
use crate::http::{HttpError, TlsFiles};

/// Why a client's call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection could not be made, or broke, or took longer than the timeout.
    #[error("the connection to the NBD server failed: {0}")]
    Io(#[source] io::Error),
    /// The server wants a client with a certificate.
    #[error("the NBD server wants TLS: name a certificate, its key and the authority")]
    NoCertificate,
    /// The certificates are of no use.
    #[error(transparent)]
    Certificate(#[from] HttpError),
    /// The server answered outside the protocol, or with what this client does not support.
    #[error("the NBD server sent {0}")]
    Protocol(&'static str),
    /// There is no export of this name.
    #[error("the NBD server has no export \"{0}\"")]
    NoSuchExport(String),
    /// The server executed the request and says that it failed.
    #[error("the NBD server refused a request: {0}")]
    Refused(#[from] ErrorCode),
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        // What the system says of a socket's timeout says nothing to people.
        ClientError::Io(match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time"),
            _ => error,
        })
    }
}

/// How long a server may take for each step until the export is open: as long as ours waits for a client.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to one export of an NBD server.
///
/// After an error other than [`ClientError::Refused`] the connection is out of step and of no more use.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<Stream>,
    size: u64,
    flags: u16,
    cookie: u64,
}

impl Client {
    /// Opens an export by NBD_OPT_GO.
    ///
    /// # Errors
    /// No connection, no such export, or no NBD server there; or it wants TLS, or does not answer within ten seconds.
    pub fn connect(endpoint: &Endpoint, export: &str) -> Result<Client, ClientError> {
        Client::connect_with(endpoint, export, None)
    }

    /// The same, with a certificate for an endpoint that wants TLS. The server's has to be of the same authority, and for
    /// the endpoint's address.
    ///
    /// # Errors
    /// As [`Client::connect`], or when one of the two certificates is of no use.
    pub fn connect_with(
        endpoint: &Endpoint,
        export: &str,
        tls: Option<&TlsFiles>,
    ) -> Result<Client, ClientError> {
        let mut stream = greet(endpoint, tls, PATIENCE)?;
        let mut data = Vec::new();
        data.extend(u32::try_from(export.len()).unwrap_or(u32::MAX).to_be_bytes());
        data.extend(export.as_bytes());
        data.extend(0u16.to_be_bytes());
        send_option(stream.get_mut(), option::GO, &data)?;
        let mut description = None;
        loop {
            let (kind, data) = option_answer(&mut stream, option::GO)?;
            match kind {
                option_reply::INFO => description = parse_export(&data).or(description),
                option_reply::ACK => break,
                option_reply::ERR_UNKNOWN => return Err(ClientError::NoSuchExport(export.to_owned())),
                _ => return Err(ClientError::Protocol("an error in answer to NBD_OPT_GO")),
            }
        }
        let (size, flags) = description.ok_or(ClientError::Protocol("no size of the export"))?;
        let mut client = Client { stream, size, flags, cookie: 0 };
        client.set_timeout(None)?;
        Ok(client)
    }

    /// The names of the server's exports.
    ///
    /// # Errors
    /// No connection, or the server does not tell.
    pub fn list(endpoint: &Endpoint) -> Result<Vec<String>, ClientError> {
        let mut stream = greet(endpoint, None, PATIENCE)?;
        send_option(stream.get_mut(), option::LIST, &[])?;
        let mut names = Vec::new();
        loop {
            let (kind, data) = option_answer(&mut stream, option::LIST)?;
            match kind {
                option_reply::SERVER => names.push(parse_name(&data)?),
                option_reply::ACK => break,
                _ => return Err(ClientError::Protocol("an error in answer to NBD_OPT_LIST")),
            }
        }
        send_option(stream.get_mut(), option::ABORT, &[])?;
        Ok(names)
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the server refuses everything that changes the export.
    pub fn read_only(&self) -> bool {
        self.flags & transmission_flag::READ_ONLY != 0
    }

    /// How long a call waits for the server before it fails; None for ever, which is how a client starts.
    ///
    /// # Errors
    /// The timeout is zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        let socket = self.stream.get_ref().socket();
        socket.set_read_timeout(timeout)?;
        Ok(socket.set_write_timeout(timeout)?)
    }

    /// Fills `buffer` (at most 32 MiB) from `offset`.
    ///
    /// # Errors
    /// The server refuses, or the connection broke.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ClientError> {
        self.submit(command::READ, 0, offset, length_of(buffer.len())?, &[])?;
        self.answer()?;
        Ok(self.stream.read_exact(buffer)?)
    }

    /// Writes `data` (at most 32 MiB) at `offset`; with `fua` it is durable afterwards.
    ///
    /// # Errors
    /// The server refuses, or the connection broke.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        self.submit(command::WRITE, fua_flag(fua), offset, length_of(data.len())?, data)?;
        self.answer()
    }

    /// Makes all writes that were answered before durable.
    ///
    /// # Errors
    /// The server refuses, or the connection broke.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.submit(command::FLUSH, 0, 0, 0, &[])?;
        self.answer()
    }

    /// Gives a range up.
    ///
    /// # Errors
    /// The server refuses, or the connection broke.
    pub fn trim(&mut self, offset: u64, length: u32, fua: bool) -> Result<(), ClientError> {
        self.submit(command::TRIM, fua_flag(fua), offset, length, &[])?;
        self.answer()
    }

    /// Makes a range read as zeros; with `may_punch` its space may be given back.
    ///
    /// # Errors
    /// The server refuses, or the connection broke.
    pub fn write_zeroes(
        &mut self,
        offset: u64,
        length: u32,
        may_punch: bool,
        fua: bool,
    ) -> Result<(), ClientError> {
        let no_hole = if may_punch { 0 } else { command_flag::NO_HOLE };
        self.submit(command::WRITE_ZEROES, fua_flag(fua) | no_hole, offset, length, &[])?;
        self.answer()
    }

    /// Says good-bye. Dropping the client does without.
    ///
    /// # Errors
    /// The connection broke before.
    pub fn disconnect(mut self) -> Result<(), ClientError> {
        self.submit(command::DISC, 0, 0, 0, &[])
    }

    fn submit(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> Result<(), ClientError> {
        self.cookie += 1;
        let head = Request { flags, command, cookie: self.cookie, offset, length }.encode();
        let stream = self.stream.get_mut();
        let sent = stream.write_vectored(&[IoSlice::new(&head), IoSlice::new(payload)])?;
        // What one call did not take goes by others.
        stream.write_all(head.get(sent..).unwrap_or_default())?;
        stream.write_all(&payload[sent.saturating_sub(head.len())..])?;
        Ok(stream.flush()?)
    }

    fn answer(&mut self) -> Result<(), ClientError> {
        let mut reply = [0; wire::SIMPLE_REPLY_LEN];
        self.stream.read_exact(&mut reply)?;
        match wire::decode_simple_reply(reply) {
            Some((cookie, result)) if cookie == self.cookie => Ok(result?),
            _ => Err(ClientError::Protocol("a reply to something that was not asked")),
        }
    }
}

/// What octets go to and come from.
#[derive(Debug)]
enum Stream {
    Plain(Socket),
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Stream {
    fn socket(&self) -> &Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.get_ref(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(data),
            Stream::Tls(stream) => stream.write(data),
        }
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write_vectored(data),
            Stream::Tls(stream) => stream.write_vectored(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            // A socket keeps nothing back.
            Stream::Plain(_) => Ok(()),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}

fn fua_flag(fua: bool) -> u16 {
    if fua { command_flag::FUA } else { 0 }
}

fn length_of(bytes: usize) -> Result<u32, ClientError> {
    let length = u32::try_from(bytes).ok().filter(|length| *length <= MAX_PAYLOAD);
    length.ok_or(ClientError::Refused(ErrorCode::Invalid))
}

/// Connects, exchanges the flags, and begins TLS where the endpoint wants that. `patience` is the socket's timeout then.
fn greet(
    endpoint: &Endpoint,
    tls: Option<&TlsFiles>,
    patience: Duration,
) -> Result<BufReader<Stream>, ClientError> {
    let socket: OwnedFd = match endpoint {
        Endpoint::Tcp(address) | Endpoint::Tls(address) => {
            let stream = TcpStream::connect_timeout(address, patience)?;
            stream.set_nodelay(true)?;
            stream.into()
        }
        Endpoint::Unix(path) => UnixStream::connect(path)?.into(),
    };
    let mut socket = Socket::from(socket);
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting)?;
    let rest = &mut greeting.as_slice();
    let magic = (wire::take_u64(rest), wire::take_u64(rest));
    if magic != (Some(MAGIC), Some(OPTION_MAGIC)) {
        return Err(ClientError::Protocol("no NBD greeting"));
    }
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let offered = wire::take_u16(rest).unwrap_or(0);
    if offered & handshake_flag::FIXED_NEWSTYLE == 0 {
        return Err(ClientError::Protocol("a handshake older than fixed newstyle"));
    }
    socket.write_all(&u32::from(flags & offered).to_be_bytes())?;
    let stream = match endpoint {
        Endpoint::Tls(address) => Stream::Tls(Box::new(start_tls(socket, address.ip(), tls)?)),
        _ => Stream::Plain(socket),
    };
    Ok(BufReader::with_capacity(64 << 10, stream))
}

/// Has the server begin TLS (`doc/proto.md`, NBD_OPT_STARTTLS). Nothing is buffered until then: octets that came in the
/// clear would be taken for some that came by TLS.
fn start_tls(
    mut socket: Socket,
    server: IpAddr,
    tls: Option<&TlsFiles>,
) -> Result<StreamOwned<ClientConnection, Socket>, ClientError> {
    let config = tls.ok_or(ClientError::NoCertificate)?.client()?;
    send_option(&mut socket, option::STARTTLS, &[])?;
    if option_answer(&mut socket, option::STARTTLS)?.0 != option_reply::ACK {
        return Err(ClientError::Protocol("an error in answer to NBD_OPT_STARTTLS"));
    }
    let session = ClientConnection::new(Arc::new(config), ServerName::from(server));
    Ok(StreamOwned::new(session.map_err(io::Error::other)?, socket))
}

fn send_option(stream: &mut impl Write, option: u32, data: &[u8]) -> Result<(), ClientError> {
    let mut bytes = wire::option_head(option, u32::try_from(data.len()).unwrap_or(u32::MAX)).to_vec();
    bytes.extend(data);
    stream.write_all(&bytes)?;
    Ok(stream.flush()?)
}

fn option_answer(stream: &mut impl Read, option: u32) -> Result<(u32, Vec<u8>), ClientError> {
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    let rest = &mut head.as_slice();
    let to = (wire::take_u64(rest), wire::take_u32(rest));
    let (kind, length) = (wire::take_u32(rest).unwrap_or(0), wire::take_u32(rest).unwrap_or(0));
    if to != (Some(OPTION_REPLY_MAGIC), Some(option)) || length > MAX_OPTION {
        return Err(ClientError::Protocol("an answer to an option that was not sent"));
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

/// Size and flags, if this information is about them.
fn parse_export(mut data: &[u8]) -> Option<(u64, u16)> {
    if wire::take_u16(&mut data)? != info::EXPORT {
        return None;
    }
    Some((wire::take_u64(&mut data)?, wire::take_u16(&mut data)?))
}

fn parse_name(mut data: &[u8]) -> Result<String, ClientError> {
    let length = wire::take_u32(&mut data).map(|length| length as usize);
    let name = length.and_then(|length| data.get(..length)).filter(|name| name.len() <= MAX_STRING);
    name.and_then(|name| String::from_utf8(name.to_vec()).ok())
        .ok_or(ClientError::Protocol("a name that is none"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::Tcp(silent.local_addr().unwrap());
        let error = greet(&endpoint, None, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.to_string(), "the connection to the NBD server failed: it did not answer in time");
    }
}
