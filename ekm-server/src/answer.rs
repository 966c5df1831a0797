//! An answer on its way: counted until its peer wants it, and handed over in pieces, since what HTTP/2 has once taken is out of sight.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use crate::connection::{Room, Untaken};

/// One record of TLS, and one frame of HTTP/2.
const PIECE_BYTES: usize = 16 * 1024;

/// The body of an answer.
pub struct Answer {
    body: Body,
    rest: Bytes,
    untaken: Untaken,
    _room: Option<Room>,
}

impl Answer {
    /// From now on untaken, and keeps its room until it is taken.
    pub fn new(body: Body, untaken: Untaken, room: Option<Room>) -> Self {
        Self { body, rest: Bytes::new(), untaken, _room: room }
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end_or_error => return Poll::Ready(end_or_error),
            }
        } else {
            self.untaken.goes_on();
        }
        let length = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
