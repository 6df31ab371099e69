//! What the text of a column means, by its type.

use std::collections::{BTreeSet, HashMap};

mod builtin;

/// How deep domains of domains and arrays of domains of arrays are followed. Postgres itself sets no
/// limit; nobody goes past two.
const TYPE_DEPTH_MAX: usize = 8;

/// How the text of a value becomes JSON. Types that share a form share a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `t` or `f`.
    Bool,
    /// A whole number of at most 64 bits.
    Integer,
    /// A binary fraction; may be `NaN` or infinite.
    Float,
    /// A decimal fraction of any length; may be `NaN` or infinite.
    Numeric,
    /// An amount with a currency sign and separators.
    Money,
    /// Anything that stays as it is.
    Text,
    /// `\x` and hexadecimal digits.
    Bytea,
    /// A day.
    Date,
    /// A day and a time.
    Timestamp,
    /// A day and a time in UTC.
    TimestampTz,
    /// JSON itself.
    Json,
    /// Any number of elements in any number of dimensions.
    Array {
        /// What an element means.
        element: Box<Kind>,
        /// What stands between elements: a comma, or the semicolon of `box`.
        delimiter: u8,
    },
    /// pgvector's `[1,2,3]`.
    Vector,
}

/// A row of `pg_type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeInfo {
    /// `oid`.
    pub oid: u32,
    /// `typname`.
    pub name: String,
    /// Name of the schema.
    pub schema: String,
    /// `typtype`: `b` base, `c` composite, `d` domain, `e` enum, `p` pseudo, `r` range, `m` multirange.
    pub kind: char,
    /// `typcategory`: `A` array, `S` string, `N` number, …
    pub category: char,
    /// `typelem` of a true array; 0 = no array.
    pub element: u32,
    /// `typbasetype` of a domain; 0 = no domain.
    pub base: u32,
    /// `typtypmod` of a domain: the modifier of its base type; -1 = none.
    pub base_modifier: i32,
    /// `typdelim`: what stands between elements of arrays of this type.
    pub delimiter: char,
}

/// A type with its domains taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseType<'a> {
    /// `pg_type.oid`.
    pub oid: u32,
    /// Modifier, which may come from a domain; -1 = none.
    pub modifier: i32,
    /// `typname`, by which types of extensions are told. Empty for what comes with Postgres.
    pub name: &'a str,
    /// `typtype`.
    pub kind: char,
}

/// The types that are known: those that come with Postgres, and those that the catalogue told of.
#[derive(Debug, Clone, Default)]
pub struct Types {
    by_oid: HashMap<u32, TypeInfo>,
}

impl Types {
    /// Only what comes with Postgres.
    pub fn new() -> Self {
        Self::default()
    }

    /// Learns of a type, or learns anew.
    pub fn add(&mut self, info: TypeInfo) {
        self.by_oid.insert(info.oid, info);
    }

    /// What text of this type means. [`Kind::Text`] as long as the type, or one that it is made of, is unknown.
    pub fn kind(&self, oid: u32) -> Kind {
        self.resolve(oid, TYPE_DEPTH_MAX).unwrap_or(Kind::Text)
    }

    /// Those of `oids`, and of the types that they are made of, of which nothing is known. To be asked of
    /// the catalogue and added, until none is left or the catalogue does not know it either.
    pub fn unknown(&self, oids: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
        oids.into_iter().filter_map(|oid| self.resolve(oid, TYPE_DEPTH_MAX).err()).collect()
    }

    /// The type behind `oid`'s domains, if it is known.
    pub fn base(&self, oid: u32, modifier: i32) -> Option<BaseType<'_>> {
        let (mut oid, mut modifier) = (oid, modifier);
        for _ in 0..TYPE_DEPTH_MAX {
            let Some(info) = self.by_oid.get(&oid) else {
                return builtin::kind(oid).map(|_| BaseType { oid, modifier, name: "", kind: 'b' });
            };
            if info.base == 0 {
                return Some(BaseType { oid, modifier, name: &info.name, kind: info.kind });
            }
            // A domain has no modifier of its own, so the outermost one that says something counts.
            modifier = if modifier == -1 { info.base_modifier } else { modifier };
            oid = info.base;
        }
        None
    }

    /// # Errors
    /// The type that is not known.
    fn resolve(&self, oid: u32, depth: usize) -> Result<Kind, u32> {
        if let Some(kind) = builtin::kind(oid) {
            return Ok(kind);
        }
        let info = self.by_oid.get(&oid).ok_or(oid)?;
        if depth == 0 {
            return Ok(Kind::Text);
        }
        if info.base != 0 {
            return self.resolve(info.base, depth - 1);
        }
        if info.category == 'A' && info.element != 0 {
            let element = Box::new(self.resolve(info.element, depth - 1)?);
            // Only ASCII can be a delimiter; anything else would be a type that we cannot take apart.
            return Ok(match u8::try_from(info.delimiter) {
                Ok(delimiter) if delimiter.is_ascii() => Kind::Array { element, delimiter },
                _ => Kind::Text,
            });
        }
        Ok(match info.name.as_str() {
            "vector" | "halfvec" if info.kind == 'b' => Kind::Vector,
            _ => Kind::Text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(oid: u32, name: &str, kind: char) -> TypeInfo {
        let category = if kind == 'e' { 'E' } else { 'U' };
        TypeInfo {
            oid,
            name: name.to_owned(),
            schema: "public".to_owned(),
            kind,
            category,
            element: 0,
            base: 0,
            base_modifier: -1,
            delimiter: ',',
        }
    }

    fn array(oid: u32, element: u32) -> TypeInfo {
        TypeInfo { category: 'A', element, ..info(oid, "_x", 'b') }
    }

    fn domain(oid: u32, base: u32, base_modifier: i32) -> TypeInfo {
        TypeInfo { base, base_modifier, ..info(oid, "d", 'd') }
    }

    fn array_of(element: Kind) -> Kind {
        Kind::Array { element: Box::new(element), delimiter: b',' }
    }

    #[test]
    fn what_comes_with_postgres_needs_no_catalogue() {
        let types = Types::new();
        for (oid, kind) in [
            (16, Kind::Bool),
            (20, Kind::Integer),
            (26, Kind::Integer),
            (701, Kind::Float),
            (1700, Kind::Numeric),
            (790, Kind::Money),
            (1043, Kind::Text),
            (17, Kind::Bytea),
            (1082, Kind::Date),
            (1114, Kind::Timestamp),
            (1184, Kind::TimestampTz),
            (1083, Kind::Text),
            (114, Kind::Json),
            (3802, Kind::Json),
            (1007, array_of(Kind::Integer)),
            (3807, array_of(Kind::Json)),
            (1020, Kind::Array { element: Box::new(Kind::Text), delimiter: b';' }),
            // `1 2 3` and not `{1,2,3}`, although typcategory says array.
            (22, Kind::Text),
            (1006, array_of(Kind::Text)),
            (3904, Kind::Text),
            (4451, Kind::Text),
        ] {
            assert_eq!(types.kind(oid), kind, "{oid}");
            assert!(types.unknown([oid]).is_empty(), "{oid}");
        }
    }

    #[test]
    fn the_unknown_are_text_and_are_told_until_all_parts_are_known() {
        let mut types = Types::new();
        let ask = |types: &Types| types.unknown([23, 20_003, 20_010]).into_iter().collect::<Vec<_>>();
        assert_eq!(ask(&types), [20_003, 20_010]);
        assert_eq!(types.kind(20_003), Kind::Text);
        types.add(array(20_003, 20_002));
        types.add(info(20_010, "mood", 'e'));
        assert_eq!(ask(&types), [20_002]);
        assert_eq!(types.kind(20_003), Kind::Text);
        types.add(domain(20_002, 20_001, -1));
        types.add(domain(20_001, 1700, 655_366));
        assert!(ask(&types).is_empty());
        assert_eq!(types.kind(20_003), array_of(Kind::Numeric));
        assert_eq!(types.kind(20_010), Kind::Text);
    }

    #[test]
    fn a_domain_gives_its_base_and_its_modifier() {
        let mut types = Types::new();
        types.add(domain(20_001, 1700, 655_366));
        types.add(domain(20_002, 20_001, -1));
        let base = types.base(20_002, -1).expect("known");
        assert_eq!((base.oid, base.modifier, base.kind), (1700, 655_366, 'b'));
        types.add(info(20_010, "mood", 'e'));
        assert_eq!(types.base(20_010, -1).map(|base| (base.name, base.kind)), Some(("mood", 'e')));
        assert_eq!(types.base(20_099, -1), None);
    }

    #[test]
    fn a_circle_of_domains_ends() {
        let mut types = Types::new();
        types.add(domain(20_001, 20_002, -1));
        types.add(domain(20_002, 20_001, -1));
        assert_eq!(types.kind(20_001), Kind::Text);
        assert_eq!(types.base(20_001, -1), None);
    }

    #[test]
    fn types_of_extensions_are_told_by_name() {
        let mut types = Types::new();
        for (oid, name) in
            [(20_001, "vector"), (20_002, "halfvec"), (20_003, "sparsevec"), (20_004, "hstore")]
        {
            types.add(info(oid, name, 'b'));
        }
        types.add(info(20_005, "vector", 'c'));
        types.add(array(20_006, 20_001));
        assert_eq!(types.kind(20_001), Kind::Vector);
        assert_eq!(types.kind(20_002), Kind::Vector);
        for oid in 20_003..=20_005 {
            assert_eq!(types.kind(oid), Kind::Text);
        }
        assert_eq!(types.kind(20_006), array_of(Kind::Vector));
    }
}
