//! The byte alphabet of byte-level BPE: each of the 256 bytes has one printable character that
//! stands for it inside token strings. Source: the GPT-2 encoder's published byte table.

/// The character that stands for `byte` in a token string: itself when it is printable Latin-1,
/// otherwise the next free character from U+0100 on.
pub(super) fn char_of(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or('\u{fffd}')
}

/// The byte that `c` stands for, if it is in the alphabet.
pub(super) fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        // The bytes without a printable form, in order: 0-32, 127-160, 173.
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 127) as u8),
        0x143 => Some(173),
        _ => None,
    }
}

/// Appends the bytes of a byte-level token. A token with a character outside the alphabet (an
/// added token written as plain text) stands for its own UTF-8.
pub(super) fn push_token(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => out.push(byte),
            None => {
                out.truncate(start);
                out.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_directions_agree_for_every_byte() {
        for byte in 0..=255u8 {
            assert_eq!(byte_of(char_of(byte)), Some(byte), "byte {byte}");
        }
        assert_eq!(char_of(b' '), 'Ġ');
        assert_eq!(char_of(b'\n'), 'Ċ');
        assert_eq!(char_of(173), '\u{143}');
    }

    #[test]
    fn a_token_outside_the_alphabet_is_plain_text() {
        let mut out = b"x".to_vec();
        push_token("Ġa b", &mut out);
        assert_eq!(out, "xĠa b".as_bytes());
        out.clear();
        push_token("Ġab", &mut out);
        assert_eq!(out, b" ab");
    }
}
