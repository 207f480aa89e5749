//! A session written down and read again.
//!
//! ```text
//! magic            8 bytes   "PUNASESS"
//! version          u32       1
//! byte order       u32       0x01020304 as this machine writes it: the cache has its order
//! model            32 bytes  Model::fingerprint
//! kv type          u8        place in KvType::ALL
//! finish           u8        0 none, 1 stop, 2 length, 3 cancelled
//! logits           u8        whether they follow
//! n_ids, n_cached, n_new     u64 each
//! seed, stream     u64 each  of the sampler
//! position         u128      of its random stream
//! ids              u32 each
//! logits           f32 each, vocab_size of them
//! cache            layer by layer, as KvLayer::save hands it out
//! checksum         u64       of all before it
//! ```
//!
//! Numbers are little-endian. Every length is held against what the receiving session has room for
//! before anything is read into it, and nothing is allocated: a file cannot ask for memory. The
//! checksum finds damage, not malice; a forged cache gives wrong numbers and nothing worse.

use super::Session;
use crate::error::{Error, Result};
use crate::infer::sampler::Draws;
use crate::infer::sequence::FinishReason;
use crate::model::llama::KvType;
use std::io::{ErrorKind, Read, Write};

const MAGIC: [u8; 8] = *b"PUNASESS";
const VERSION: u32 = 1;
const BYTE_ORDER: u32 = 0x0102_0304;
/// Where errors say that they come from.
const PLACE: &str = "saved session";

/// A sum over pieces of bytes, the same for the same pieces: multiply and add by words, after
/// Fowler, Noll and Vo, with the prime of their 64-bit hash.
struct Checksum(u64);

impl Checksum {
    const PRIME: u64 = 0x0000_0100_0000_01b3;

    fn new() -> Checksum {
        Checksum(0xcbf2_9ce4_8422_2325)
    }

    fn word(&mut self, word: u64) {
        // The rotation brings high bits down, which a product alone never does.
        self.0 = (self.0 ^ word).wrapping_mul(Self::PRIME).rotate_left(23);
    }

    fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|&word| self.word(u64::from_le_bytes(word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
        self.word(bytes.len() as u64);
    }
}

struct Writer<'a, W> {
    out: &'a mut W,
    sum: Checksum,
}

impl<W: Write> Writer<'_, W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.sum.add(bytes);
        self.out.write_all(bytes).map_err(|source| Error::io(PLACE, source))
    }
}

struct Reader<'a, R> {
    input: &'a mut R,
    sum: Checksum,
    at: u64,
}

impl<R: Read> Reader<'_, R> {
    fn bytes(&mut self, out: &mut [u8]) -> Result<()> {
        self.input.read_exact(out).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => {
                refuse(format!("it ends early: {} bytes wanted from byte {}", out.len(), self.at))
            }
            _ => Error::io(PLACE, source),
        })?;
        self.at += out.len() as u64;
        self.sum.add(out);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.bytes(&mut bytes)?;
        Ok(bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of at most `most`.
    fn count(&mut self, what: &str, most: usize) -> Result<usize> {
        let n = self.u64()?;
        match usize::try_from(n) {
            Ok(n) if n <= most => Ok(n),
            _ => Err(refuse(format!("{n} {what}, this session has room for {most}"))),
        }
    }
}

fn refuse(what: String) -> Error {
    Error::Data { place: PLACE.into(), what }
}

fn code_of(finish: Option<FinishReason>) -> u8 {
    match finish {
        None => 0,
        Some(FinishReason::Stop) => 1,
        Some(FinishReason::Length) => 2,
        Some(FinishReason::Cancelled) => 3,
    }
}

fn finish_of(code: u8) -> Result<Option<FinishReason>> {
    Ok(match code {
        0 => None,
        1 => Some(FinishReason::Stop),
        2 => Some(FinishReason::Length),
        3 => Some(FinishReason::Cancelled),
        other => return Err(refuse(format!("end reason {other}, wanted 0 to 3"))),
    })
}

fn kv_code(kv_type: KvType) -> u8 {
    KvType::ALL.iter().position(|&other| other == kv_type).unwrap_or_default() as u8
}

impl Session {
    /// Writes everything that the sequence is: tokens, cache, logits, where its random stream
    /// stands. Settings (of sampler and end) are not part of it.
    ///
    /// ```
    /// # use puna::infer::{Session, SessionOptions};
    /// # use puna::model::llama::{LoadOptions, Model};
    /// # use std::sync::Arc;
    /// # let model = Arc::new(Model::load("builtin".as_ref(), &LoadOptions::threads(1))?);
    /// let options = SessionOptions { ctx: 32, ..Default::default() };
    /// let mut session = Session::new(Arc::clone(&model), options.clone())?;
    /// session.prefill(&[5, 6, 7])?;
    /// let mut saved = vec![];
    /// session.save(&mut saved)?;
    ///
    /// let mut later = Session::new(model, options)?;
    /// later.restore(&mut &saved[..])?;
    /// assert_eq!(session.step()?, later.step()?);
    /// # Ok::<(), puna::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the writer returns.
    pub fn save(&self, out: &mut impl Write) -> Result<()> {
        let mut to = Writer { out, sum: Checksum::new() };
        let ready = self.is_ready();
        to.bytes(&MAGIC)?;
        to.bytes(&VERSION.to_le_bytes())?;
        to.bytes(&BYTE_ORDER.to_ne_bytes())?;
        to.bytes(&self.model.fingerprint()?)?;
        to.bytes(&[kv_code(self.cache.kv_type()), code_of(self.finish), u8::from(ready)])?;
        for n in [self.ids.len(), self.cache.len(), self.n_new] {
            to.bytes(&(n as u64).to_le_bytes())?;
        }
        let Draws { seed, stream, position } = self.sampler.draws();
        to.bytes(&seed.to_le_bytes())?;
        to.bytes(&stream.to_le_bytes())?;
        to.bytes(&position.to_le_bytes())?;
        for id in &self.ids {
            to.bytes(&id.to_le_bytes())?;
        }
        if ready {
            for logit in self.logits.read()? {
                to.bytes(&logit.to_le_bytes())?;
            }
        }
        self.cache.save(&mut |bytes: &[u8]| to.bytes(bytes))?;
        let sum = to.sum.0;
        to.out.write_all(&sum.to_le_bytes()).map_err(|source| Error::io(PLACE, source))
    }

    /// Becomes the sequence that was saved, which goes on with the same bits as if it had never been
    /// left. The settings stay this session's own; the random stream goes on where it stood. What
    /// the session held before is gone, and where restoring fails it is empty.
    ///
    /// # Errors
    /// Another model, type of cache, machine or version; more tokens than this session has room
    /// for; anything damaged; what the reader returns.
    pub fn restore(&mut self, input: &mut impl Read) -> Result<()> {
        self.truncate(0);
        let restored = self.read(&mut Reader { input, sum: Checksum::new(), at: 0 });
        if restored.is_err() {
            self.truncate(0);
        }
        restored
    }

    fn read<R: Read>(&mut self, from: &mut Reader<'_, R>) -> Result<()> {
        self.read_identity(from)?;
        let [kv, finish, logits] = from.array()?;
        if kv != kv_code(self.cache.kv_type()) {
            let name =
                |code: u8| KvType::ALL.get(usize::from(code)).map_or("unknown", |t| t.name());
            let own = self.cache.kv_type().name();
            return Err(refuse(format!("a cache of type {}, this session's is {own}", name(kv))));
        }
        let finish = finish_of(finish)?;
        let n_ids = from.count("tokens", self.capacity() + 1)?;
        let n_cached = from.count("cached positions", n_ids.min(self.capacity()))?;
        let n_new = from.count("new tokens", n_ids)?;
        // Only the last token may be waiting to run; the logits come after all of them.
        let ready = match logits {
            0 if n_cached + 1 >= n_ids => false,
            1 if n_cached == n_ids && n_ids > 0 => true,
            _ => {
                return Err(refuse(format!(
                    "{n_cached} positions cached of {n_ids} tokens, with mark {logits} for logits"
                )));
            }
        };
        let (seed, stream) = (from.u64()?, from.u64()?);
        let position = u128::from_le_bytes(from.array()?);
        let vocab_size = self.model.config.vocab_size;
        for place in 0..n_ids {
            let id = u32::from_le_bytes(from.array()?);
            if id as usize >= vocab_size {
                let what = format!("token {place} is {id}, the vocabulary has {vocab_size}");
                return Err(refuse(what));
            }
            self.ids.push(id);
        }
        if ready {
            self.logits.fill(|| Ok(f32::from_le_bytes(from.array()?)))?;
        }
        self.cache.restore(n_cached, &mut |bytes: &mut [u8]| from.bytes(bytes))?;
        let wanted = from.sum.0;
        let found = from.u64()?;
        if found != wanted {
            return Err(refuse(format!("checksum {found:016x}, wanted {wanted:016x}: damaged")));
        }
        self.sampler.set_draws(Draws { seed, stream, position });
        self.ids.iter().for_each(|&id| self.sampler.observe(id));
        self.logits_after = if ready { n_ids } else { 0 };
        (self.n_new, self.finish) = (n_new, finish);
        self.text_again()
    }

    fn read_identity<R: Read>(&self, from: &mut Reader<'_, R>) -> Result<()> {
        let magic: [u8; 8] = from.array()?;
        if magic != MAGIC {
            return Err(refuse(format!("it begins with {magic:?}, wanted {MAGIC:?}")));
        }
        let version = u32::from_le_bytes(from.array()?);
        if version != VERSION {
            return Err(refuse(format!("version {version}, this build reads {VERSION}")));
        }
        let order: [u8; 4] = from.array()?;
        if order != BYTE_ORDER.to_ne_bytes() {
            return Err(refuse("it comes from a machine of the other byte order".into()));
        }
        let model: [u8; 32] = from.array()?;
        if model != self.model.fingerprint()? {
            return Err(refuse("it belongs to another model, or to other adapters".into()));
        }
        Ok(())
    }

    /// Decodes the answer so far again.
    fn text_again(&mut self) -> Result<()> {
        let Some(text) = &mut self.text else { return Ok(()) };
        let tokenizer = self.model.tokenizer()?;
        for &id in &self.ids[self.ids.len() - self.n_new..] {
            // What ended the answer is no part of its text.
            if self.end_ids.contains(&id) {
                break;
            }
            text.push(tokenizer, id)?;
        }
        if self.finish.is_some() {
            text.finish();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_sees_every_bit_length_and_order() {
        let sum = |pieces: &[&[u8]]| {
            let mut sum = Checksum::new();
            pieces.iter().for_each(|piece| sum.add(piece));
            sum.0
        };
        let bytes: Vec<u8> = (0..37).collect();
        let whole = sum(&[&bytes]);
        for bit in 0..8 * bytes.len() {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(sum(&[&other]), whole, "bit {bit}");
        }
        assert_ne!(sum(&[&bytes[..36]]), whole);
        assert_ne!(sum(&[&[0; 3]]), sum(&[&[0; 4]]));
        assert_ne!(sum(&[&[1], &[2]]), sum(&[&[2], &[1]]));
    }

    #[test]
    fn end_reasons_have_codes_of_their_own() {
        use FinishReason::*;
        for reason in [None, Some(Stop), Some(Length), Some(Cancelled)] {
            assert_eq!(finish_of(code_of(reason)).unwrap(), reason);
        }
        assert!(finish_of(4).is_err());
    }
}
