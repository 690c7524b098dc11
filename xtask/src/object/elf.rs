//! As much of ELF as it takes to list an object's functions: 64 bits, little-endian (elf.h of the System V ABI).

/// Bytes of a BPF instruction.
const INSTRUCTION: u64 = 8;

/// `SHT_SYMTAB`.
const SYMBOL_TABLE: u64 = 2;

/// `STT_FUNC`, the low four bits of `st_info`.
const FUNCTION: u64 = 2;

/// Bytes of an `Elf64_Sym`.
const SYMBOL: usize = 24;

/// A function: a program where its section says so, else one that the verifier sees as a subprogram.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// Its symbol.
    pub name: String,
    /// The section, which names the kind of program.
    pub section: String,
    /// How many instructions of eight bytes it takes; a 64-bit load counts as two.
    pub instructions: u64,
}

/// An `Elf64_Shdr`, as far as needed.
struct Section<'a> {
    name: usize,
    kind: u64,
    link: usize,
    data: &'a [u8],
}

/// Every function of the object, largest first; `None` when the bytes are no such object.
pub fn functions(file: &[u8]) -> Option<Vec<Function>> {
    let sections = sections(file)?;
    let names = sections.get(number(file, 0x3e, 2)?)?.data;
    let symbols = sections.iter().find(|section| section.kind == SYMBOL_TABLE)?;
    let symbol_names = sections.get(symbols.link)?.data;
    let mut found = Vec::new();
    for symbol in symbols.data.chunks_exact(SYMBOL) {
        let size = wide(symbol, 16, 8)?;
        if wide(symbol, 4, 1)? & 0xf != FUNCTION || size == 0 {
            continue;
        }
        let section = sections.get(number(symbol, 6, 2)?)?;
        found.push(Function {
            name: text(symbol_names, number(symbol, 0, 4)?)?,
            section: text(names, section.name)?,
            instructions: size / INSTRUCTION,
        });
    }
    found.sort_by_key(|function| std::cmp::Reverse(function.instructions));
    Some(found)
}

fn sections(file: &[u8]) -> Option<Vec<Section<'_>>> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (start, size, count) = (number(file, 0x28, 8)?, number(file, 0x3a, 2)?, number(file, 0x3c, 2)?);
    let headers = file.get(start..)?.chunks_exact(size.max(1)).take(count);
    headers.map(|header| section(file, header)).collect()
}

fn section<'a>(file: &'a [u8], header: &[u8]) -> Option<Section<'a>> {
    let (start, size) = (number(header, 24, 8)?, number(header, 32, 8)?);
    let data = file.get(start..).and_then(|rest| rest.get(..size)).unwrap_or_default();
    Some(Section {
        name: number(header, 0, 4)?,
        kind: wide(header, 4, 4)?,
        link: number(header, 40, 4)?,
        data,
    })
}

fn text(strings: &[u8], start: usize) -> Option<String> {
    let bytes = strings.get(start..)?.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

fn number(bytes: &[u8], offset: usize, width: usize) -> Option<usize> {
    usize::try_from(wide(bytes, offset, width)?).ok()
}

fn wide(bytes: &[u8], offset: usize, width: usize) -> Option<u64> {
    let field = bytes.get(offset..)?.get(..width)?;
    Some(field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::functions;

    #[test]
    fn bytes_that_are_no_object_are_refused() {
        assert_eq!(functions(b"#!/bin/sh"), None);
        assert_eq!(functions(b"\x7fELF\x02\x01"), None);
    }

    #[test]
    fn functions_of_this_very_program_are_found() {
        let file = std::fs::read("/proc/self/exe").expect("this program");
        let found = functions(&file).expect("an object");
        assert!(found.iter().any(|function| function.name == "main" && function.section == ".text"));
    }
}
