//! Types that come with Postgres: their OIDs are the same in every database since 9.0
//! (`src/include/catalog/pg_type.dat`), so the catalogue need not be asked.

use super::Kind;

/// Arrays: OID of the array, OID of the element.
const ARRAYS: [(u32, u32); 68] = [
    (143, 142),
    (199, 114),
    (271, 5069),
    (629, 628),
    (651, 650),
    (719, 718),
    (775, 774),
    (791, 790),
    (1000, 16),
    (1001, 17),
    (1002, 18),
    (1003, 19),
    (1005, 21),
    (1006, 22),
    (1007, 23),
    (1008, 24),
    (1009, 25),
    (1010, 27),
    (1011, 28),
    (1012, 29),
    (1013, 30),
    (1014, 1042),
    (1015, 1043),
    (1016, 20),
    (1017, 600),
    (1018, 601),
    (1019, 602),
    (1020, 603),
    (1021, 700),
    (1022, 701),
    (1027, 604),
    (1028, 26),
    (1034, 1033),
    (1040, 829),
    (1041, 869),
    (1115, 1114),
    (1182, 1082),
    (1183, 1083),
    (1185, 1184),
    (1187, 1186),
    (1231, 1700),
    (1270, 1266),
    (1561, 1560),
    (1563, 1562),
    (2201, 1790),
    (2210, 2205),
    (2211, 2206),
    (2949, 2970),
    (2951, 2950),
    (3221, 3220),
    (3643, 3614),
    (3645, 3615),
    (3735, 3734),
    (3807, 3802),
    (3905, 3904),
    (3907, 3906),
    (3909, 3908),
    (3911, 3910),
    (3913, 3912),
    (3927, 3926),
    (4073, 4072),
    (5039, 5038),
    (6150, 4451),
    (6151, 4532),
    (6152, 4533),
    (6153, 4534),
    (6155, 4535),
    (6157, 4536),
];
/// `box`, the only one whose arrays have another delimiter.
const BOX: u32 = 603;

/// The kind of a type that comes with Postgres; none if it does not, or if nobody keeps it in a column.
pub(super) fn kind(oid: u32) -> Option<Kind> {
    if let Some(kind) = scalar(oid) {
        return Some(kind);
    }
    let place = ARRAYS.binary_search_by_key(&oid, |(array, _)| *array).ok()?;
    let (_, element) = ARRAYS[place];
    let delimiter = if element == BOX { b';' } else { b',' };
    Some(Kind::Array { element: Box::new(scalar(element)?), delimiter })
}

fn scalar(oid: u32) -> Option<Kind> {
    Some(match oid {
        16 => Kind::Bool,
        // int8, int2, int4, oid
        20 | 21 | 23 | 26 => Kind::Integer,
        700 | 701 => Kind::Float,
        1700 => Kind::Numeric,
        790 => Kind::Money,
        17 => Kind::Bytea,
        1082 => Kind::Date,
        1114 => Kind::Timestamp,
        1184 => Kind::TimestampTz,
        114 | 3802 => Kind::Json,
        // "char", name, int2vector, regproc, text, tid, xid, cid, oidvector, xml
        18 | 19 | 22 | 24 | 25 | 27 | 28 | 29 | 30 | 142
        // point, lseg, path, box, polygon, line, cidr, circle, macaddr8, macaddr, inet, aclitem
        | 600..=604 | 628 | 650 | 718 | 774 | 829 | 869 | 1033
        // char(n), varchar, time, interval, timetz, bit, varbit, refcursor, regclass, regtype, uuid, txid_snapshot
        | 1042 | 1043 | 1083 | 1186 | 1266 | 1560 | 1562 | 1790 | 2205 | 2206 | 2950 | 2970
        // pg_lsn, tsvector, tsquery, regconfig, ranges, jsonpath, multiranges, pg_snapshot, xid8
        | 3220 | 3614 | 3615 | 3734 | 3904 | 3906 | 3908 | 3910 | 3912 | 3926 | 4072 | 4451 | 4532..=4536
        | 5038 | 5069 => Kind::Text,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_can_be_searched_and_their_elements_are_known() {
        assert!(ARRAYS.is_sorted_by_key(|(array, _)| *array));
        for (array, element) in ARRAYS {
            assert!(scalar(element).is_some(), "{array} of {element}");
            assert!(scalar(array).is_none(), "{array}");
        }
    }
}
