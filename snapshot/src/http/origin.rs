//! What a browser sends on behalf of somebody else's page.
//!
//! A browser carries what admits its user along with every request: the client certificate, or simply its place on the
//! machine whose loopback is served. And any page that it shows can make it send requests here. Such a page is kept out
//! by two rules; programs that are no browsers do not notice them.
//!
//! - *Request forgery.* A page cannot read what another site answers, so it gets nothing out of reading. But what it
//!   sends may change something. A browser says in `Origin` where a request that is no plain reading comes from, and no
//!   page can change that: it has to be this very site. Besides, a body has to be `application/json`. A page can send
//!   forms and text to other sites at will; for JSON the browser asks the site first, and here nobody answers that.
//! - *DNS rebinding.* A page of `http://elsewhere.example:7420` is of the same site as this server once that name leads
//!   to 127.0.0.1: then it may read and change everything. But its requests still carry the name, in `Host`. So on
//!   loopback only the machine's own names are served: `localhost`, or an address, which nobody can make lead elsewhere.
//!   With TLS the certificate's names see to that. Beyond loopback plain HTTP is `insecure`, and named so.

use std::net::{IpAddr, SocketAddr};

use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Refusal;

/// What a listener knows of its own place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    tls: bool,
    loopback: bool,
}

impl Site {
    pub(super) fn of(tls: bool, address: SocketAddr) -> Self {
        Site { tls, loopback: address.ip().is_loopback() }
    }

    /// Lets a request pass, or refuses it with a sentence.
    pub(super) async fn check(self, request: Request, next: Next) -> Response {
        let is_empty = request.body().is_end_stream();
        match self.refusal(request.method(), request.headers(), is_empty) {
            None => next.run(request).await,
            Some((status, sentence)) => Refusal::new(status, sentence).into_response(),
        }
    }

    fn refusal(self, method: &Method, headers: &HeaderMap, is_empty: bool) -> Option<(u16, String)> {
        let host = text(headers, header::HOST);
        if self.loopback && !self.tls && host.is_some_and(|host| !is_local(host)) {
            let host = host.unwrap_or_default();
            let sentence =
                format!("{host} is no name of this machine's loopback; ask for localhost or 127.0.0.1");
            return Some((421, sentence));
        }
        if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return None;
        }
        let scheme = if self.tls { "https" } else { "http" };
        let own = format!("{scheme}://{}", host.unwrap_or_default());
        // What carries none comes from no page, or from the browser of a time before all this.
        if headers.contains_key(header::ORIGIN)
            && !text(headers, header::ORIGIN).is_some_and(|origin| origin.eq_ignore_ascii_case(&own))
        {
            let sentence = format!("a page of another site may not do this; open {own}/ and do it there");
            return Some((403, sentence));
        }
        let kind = text(headers, header::CONTENT_TYPE);
        let is_json = kind.is_some_and(|kind| {
            kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
        });
        if (headers.contains_key(header::CONTENT_TYPE) || !is_empty) && !is_json {
            return Some((415, "a body is sent with `Content-Type: application/json`".to_owned()));
        }
        None
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Whether nobody else's DNS can say where this name leads.
fn is_local(host: &str) -> bool {
    let bare = host.parse::<SocketAddr>().map(|address| address.ip());
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    bare.is_ok() || literal.is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    fn status(site: Site, method: &Method, pairs: &[(HeaderName, &str)], is_empty: bool) -> Option<u16> {
        site.refusal(method, &headers(pairs), is_empty).map(|(status, _)| status)
    }

    const HERE: Site = Site { tls: false, loopback: true };
    const SECURE: Site = Site { tls: true, loopback: false };
    const INSECURE: Site = Site { tls: false, loopback: false };
    const JSON: (HeaderName, &str) = (header::CONTENT_TYPE, "application/json");

    #[test]
    fn on_loopback_only_the_machines_own_names_are_served() {
        for own in ["localhost:7420", "LOCALHOST", "127.0.0.1:7420", "127.0.0.1", "[::1]:7420", "[::1]"] {
            assert_eq!(status(HERE, &Method::GET, &[(header::HOST, own)], true), None, "{own}");
        }
        for foreign in ["elsewhere.example:7420", "localhost.example", "127.0.0.1.example:80", "backup", ""] {
            assert_eq!(status(HERE, &Method::GET, &[(header::HOST, foreign)], true), Some(421), "{foreign}");
            // There the certificate's names decide, and here somebody said that it is insecure.
            for elsewhere in [SECURE, INSECURE] {
                assert_eq!(status(elsewhere, &Method::GET, &[(header::HOST, foreign)], true), None);
            }
        }
        assert_eq!(status(HERE, &Method::GET, &[], true), None, "every browser names a host");
    }

    #[test]
    fn only_this_sites_own_pages_change_anything() {
        let host = (header::HOST, "127.0.0.1:7420");
        for method in [Method::POST, Method::DELETE, Method::PUT, Method::PATCH] {
            let of =
                |site, origin| status(site, &method, &[host.clone(), JSON, (header::ORIGIN, origin)], false);
            assert_eq!(of(HERE, "http://127.0.0.1:7420"), None);
            assert_eq!(of(SECURE, "https://127.0.0.1:7420"), None);
            for foreign in
                ["http://elsewhere.example", "http://127.0.0.1:7421", "null", "https://127.0.0.1:7420"]
            {
                assert_eq!(of(HERE, foreign), Some(403), "{method} from {foreign}");
            }
            assert_eq!(of(SECURE, "http://127.0.0.1:7420"), Some(403), "not even over plain HTTP");
            assert_eq!(status(HERE, &method, &[host.clone(), JSON], false), None, "no browser");
        }
        let reading = [host, (header::ORIGIN, "http://elsewhere.example")];
        assert_eq!(status(HERE, &Method::GET, &reading, true), None, "it cannot see the answer");
    }

    #[test]
    fn what_a_form_can_send_changes_nothing() {
        let host = (header::HOST, "localhost:7420");
        for form in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
            for is_empty in [true, false] {
                let sent = [host.clone(), (header::CONTENT_TYPE, form)];
                assert_eq!(status(HERE, &Method::POST, &sent, is_empty), Some(415), "{form}");
            }
        }
        let utf8 = (header::CONTENT_TYPE, "application/json; charset=utf-8");
        assert_eq!(status(HERE, &Method::POST, &[host.clone(), utf8], false), None);
        assert_eq!(status(HERE, &Method::POST, from_ref(&host), false), Some(415));
        assert_eq!(status(HERE, &Method::POST, from_ref(&host), true), None, "there is nothing in it");
        assert_eq!(status(HERE, &Method::DELETE, &[host], true), None);
    }
}
