//! Batches for nfnetlink: several messages that take effect together or not at all.

use super::{ATTRIBUTE_HEAD, HEAD, NLM_F_REQUEST, aligned};

const NLM_F_ACK: u16 = 0x004;
const NLM_F_CREATE: u16 = 0x400;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;

/// Marks an attribute that holds attributes.
const NESTED: u16 = 0x8000;

/// A batch that is being written.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    subsystem: u8,
}

impl Batch {
    /// Begins a batch for a subsystem.
    pub(crate) fn begin(subsystem: u8) -> Self {
        let mut batch = Self { bytes: Vec::new(), subsystem };
        batch.put(BEGIN, NLM_F_REQUEST, &[0, 0, 0, subsystem]);
        batch
    }

    /// Adds a message that makes something of an address family.
    pub(crate) fn create(&mut self, kind: u8, family: u8, write: impl FnOnce(&mut Body)) {
        let mut body = Body(vec![family, 0, 0, 0]);
        write(&mut body);
        let kind = u16::from_be_bytes([self.subsystem, kind]);
        self.put(kind, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK, &body.0);
    }

    /// Ends the batch.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.put(END, NLM_F_REQUEST, &[0, 0, 0, self.subsystem]);
        self.bytes
    }

    fn put(&mut self, kind: u16, flags: u16, body: &[u8]) {
        let length = HEAD.saturating_add(body.len());
        self.bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend(body);
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }
}

/// The body of a message, or the value of an attribute that holds attributes.
#[derive(Debug)]
pub(crate) struct Body(Vec<u8>);

impl Body {
    /// Adds an attribute.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = ATTRIBUTE_HEAD.saturating_add(value.len());
        self.0.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(aligned(self.0.len()), 0);
    }

    /// Adds an attribute that holds attributes.
    pub(crate) fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let mut inside = Self(Vec::new());
        write(&mut inside);
        self.attribute(kind | NESTED, &inside.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Attributes, Messages},
        *,
    };

    #[test]
    fn a_batch_reads_back() {
        let mut batch = Batch::begin(10);
        batch.create(3, 2, |message| {
            message.attribute(1, b"vmnat\0");
            message.nested(4, |inside| inside.attribute(7, &[1, 2, 3]));
        });
        let bytes = batch.end();
        let messages: Vec<_> = Messages(&bytes).collect();
        let kinds: Vec<u16> = messages.iter().map(|message| message.kind).collect();
        assert_eq!(kinds, [BEGIN, 0x0a03, END]);
        assert_eq!(messages[0].body, [0, 0, 0, 10]);
        let attributes = Attributes(&messages[1].body[4..]);
        assert_eq!(attributes.find(1), Some(&b"vmnat\0"[..]));
        assert_eq!(Attributes(attributes.find(4).unwrap()).find(7), Some(&[1, 2, 3][..]));
    }
}
