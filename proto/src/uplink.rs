//! What a device says: the claims around it and the operations (docs/protocol.md §2 and §3).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::channel::{self, Filter};
use crate::ids::MessageId;
use crate::json;
use crate::time::NumericDate;

/// The largest `seq`: what every JSON parser holds exactly.
pub(crate) const MAX_SEQ: u64 = (1 << 53) - 1;

/// How the device did what a command asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommandStatus {
    /// Done.
    Ok,
    /// Not done.
    Error,
}

/// An operation of a device, its members checked.
#[derive(Debug)]
pub(crate) enum Operation<'a> {
    Hello,
    Publish {
        id: MessageId,
        channel: Cow<'a, str>,
        data: &'a RawValue,
        at: Option<NumericDate>,
    },
    Subscribe(Filter),
    Unsubscribe(Filter),
    Result,
    /// The request as it was written: PKCS#10 in PEM, which is somebody else's to read.
    Renew(Cow<'a, str>),
}

/// The members of a payload, each still as it was written.
#[derive(Debug, Default)]
pub(crate) struct Members<'a> {
    pub(crate) iss: Option<&'a RawValue>,
    pub(crate) aud: Option<&'a RawValue>,
    pub(crate) sid: Option<&'a RawValue>,
    pub(crate) seq: Option<&'a RawValue>,
    pub(crate) iat: Option<&'a RawValue>,
    op: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    ch: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    at: Option<&'a RawValue>,
    status: Option<&'a RawValue>,
    csr: Option<&'a RawValue>,
    unknown: bool,
    seq_twice: bool,
}

impl<'a> Members<'a> {
    /// Reads the payload into `self`, which keeps what was read when it fails.
    pub(crate) fn read(&mut self, text: &'a str) -> Result<(), String> {
        let mut fault = None;
        json::members(text, |name, value| {
            let place = match &*name {
                "iss" => &mut self.iss,
                "aud" => &mut self.aud,
                "sid" => &mut self.sid,
                "seq" => &mut self.seq,
                "iat" => &mut self.iat,
                "op" => &mut self.op,
                "id" => &mut self.id,
                "ch" => &mut self.ch,
                "data" => &mut self.data,
                "at" => &mut self.at,
                "status" => &mut self.status,
                "csr" => &mut self.csr,
                _ => {
                    self.unknown = true;
                    &mut None
                }
            };
            if place.replace(value).is_some() {
                fault.get_or_insert("a member twice");
                self.seq_twice |= name == "seq";
            } else if fault.is_none() && json::check(value).is_err() {
                fault = Some(
                    "a value with a member twice, U+0000, a lone surrogate, a number beyond a double, or nested too deep",
                );
            }
            // On after a fault: a `seq` that comes later still tells the device which message it was.
            Ok(())
        })
        .map_err(|error| error.to_string())?;
        fault.map_or(Ok(()), |fault| Err(fault.to_owned()))
    }

    /// The `seq`, where one can be read. Which of two the sender meant, nobody knows.
    pub(crate) fn seq(&self) -> Option<u64> {
        if self.seq_twice {
            return None;
        }
        let text = self.seq?.get();
        let plain = matches!(text.len(), 1..=16)
            && !text.starts_with('0')
            && text.bytes().all(|b| b.is_ascii_digit());
        if !plain {
            return None;
        }
        text.parse().ok().filter(|seq| *seq <= MAX_SEQ)
    }

    /// The operation with its own members: none missing, none too many, each of its form.
    pub(crate) fn operation(&self) -> Result<Operation<'a>, &'static str> {
        if self.unknown {
            return Err("a member that this protocol does not name");
        }
        let op = self.op.and_then(json::string).ok_or("'op' is missing or not a string")?;
        let none = |others: &[Option<&RawValue>]| match others.iter().all(Option::is_none) {
            true => Ok(()),
            false => Err("a member that this operation does not have"),
        };
        let Self { id, ch, data, at, status, csr, .. } = *self;
        match &*op {
            "hello" => none(&[id, ch, data, at, status, csr]).map(|()| Operation::Hello),
            "publish" => {
                none(&[status, csr])?;
                let channel = ch.and_then(json::string).ok_or("'ch' is missing or not a string")?;
                channel::check_channel(&channel).map_err(|_| "'ch' is not a channel")?;
                let at = at.map(|raw| NumericDate::parse(raw.get()).ok_or("'at' is not a NumericDate"));
                Ok(Operation::Publish {
                    id: self.message_id()?,
                    channel,
                    data: data.ok_or("'data' is missing")?,
                    at: at.transpose()?,
                })
            }
            "subscribe" => {
                none(&[id, data, at, status, csr]).and_then(|()| self.filter()).map(Operation::Subscribe)
            }
            "unsubscribe" => {
                none(&[id, data, at, status, csr]).and_then(|()| self.filter()).map(Operation::Unsubscribe)
            }
            "result" => {
                none(&[ch, at, csr])?;
                self.message_id()?;
                match status.and_then(json::string).as_deref() {
                    Some("ok" | "error") => Ok(Operation::Result),
                    _ => Err("'status' is neither 'ok' nor 'error'"),
                }
            }
            "renew" => {
                none(&[id, ch, data, at, status])?;
                csr.and_then(json::string).map(Operation::Renew).ok_or("'csr' is missing or not a string")
            }
            _ => Err("'op' is not an operation of a device"),
        }
    }

    fn message_id(&self) -> Result<MessageId, &'static str> {
        let text = self.id.and_then(json::string).ok_or("'id' is missing or not a string")?;
        MessageId::new(&text).map_err(|_| "'id' is not 1 to 64 of A-Z a-z 0-9 . _ : -")
    }

    fn filter(&self) -> Result<Filter, &'static str> {
        let text = self.ch.and_then(json::string).ok_or("'ch' is missing or not a string")?;
        Filter::new(&text).map_err(|_| "'ch' is not a channel filter")
    }
}
