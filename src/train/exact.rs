//! f64 in JSON without the loss of a bit, and with infinities: as text in Rust's shortest form
//! that reads back as the same number. For serde's `with`.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Writes the number as a string.
///
/// # Errors
/// The serialiser's own.
pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

/// Reads it back.
///
/// # Errors
/// Anything but a number in a string.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom(format!("\"{text}\", wanted a number in a string")))
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct One {
        #[serde(with = "super")]
        value: f64,
    }

    #[test]
    fn every_bit_comes_back() {
        for value in [0.1 + 0.2, 1.0 / 3.0, -0.0, f64::MIN_POSITIVE / 3.0, 1e300, f64::INFINITY] {
            let text = serde_json::to_string(&One { value }).unwrap();
            let back: One = serde_json::from_str(&text).unwrap();
            assert_eq!(back.value.to_bits(), value.to_bits(), "{text}");
        }
        assert!(serde_json::from_str::<One>(r#"{"value": "x"}"#).is_err());
    }
}
