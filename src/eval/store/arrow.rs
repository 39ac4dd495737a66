//! The schema of a feature table as an Arrow message, which parquet files carry in their metadata (`ARROW:schema`):
//! parquet itself knows lists, but none of fixed size. Readers without Arrow see a list.
//! Format: <https://github.com/apache/arrow/tree/main/format>, `Schema.fbs` and `Message.fbs`.

use base64ct::{Base64, Encoding};
use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, VOffsetT, WIPOffset};

type Builder = FlatBufferBuilder<'static>;
type Table = WIPOffset<TableFinishedWIPOffset>;

// Of Schema.fbs and Message.fbs.
const VERSION_5: i16 = 4;
const HEADER_SCHEMA: u8 = 1;
const TYPE_INT: u8 = 2;
const TYPE_FLOATING_POINT: u8 = 3;
const TYPE_UTF8: u8 = 5;
const TYPE_FIXED_SIZE_LIST: u8 = 16;
const PRECISION_SINGLE: i16 = 1;

/// Position of a table's field with this number.
const fn slot(number: VOffsetT) -> VOffsetT {
    4 + 2 * number
}

/// The message in base64, as parquet files have it: name, label, class, vector.
pub(super) fn schema(dim: usize) -> String {
    let mut to = FlatBufferBuilder::new();
    let fields = {
        let utf8 = table(&mut to, |_| {});
        let name = field(&mut to, "name", false, (TYPE_UTF8, utf8), &[]);
        let int = table(&mut to, |to| {
            to.push_slot(slot(0), 64i32, 0); // bits
            to.push_slot(slot(1), true, false); // signed
        });
        let label = field(&mut to, "label", true, (TYPE_INT, int), &[]);
        let utf8 = table(&mut to, |_| {});
        let class = field(&mut to, "class", true, (TYPE_UTF8, utf8), &[]);
        let float = table(&mut to, |to| to.push_slot(slot(0), PRECISION_SINGLE, 0));
        let element = field(&mut to, "element", false, (TYPE_FLOATING_POINT, float), &[]);
        let list = table(&mut to, |to| to.push_slot(slot(0), dim as i32, 0));
        let vector = field(&mut to, "vector", false, (TYPE_FIXED_SIZE_LIST, list), &[element]);
        to.create_vector(&[name, label, class, vector])
    };
    let schema = table(&mut to, |to| to.push_slot_always(slot(1), fields));
    let message = table(&mut to, |to| {
        to.push_slot_always(slot(0), VERSION_5);
        to.push_slot_always(slot(1), HEADER_SCHEMA);
        to.push_slot_always(slot(2), schema);
    });
    to.finish_minimal(message);
    let mut bytes = to.finished_data().to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    // A continuation mark and the message's length.
    let framed = [&[0xff; 4][..], &(bytes.len() as u32).to_le_bytes(), &bytes].concat();
    Base64::encode_string(&framed)
}

fn table(to: &mut Builder, fill: impl FnOnce(&mut Builder)) -> Table {
    let start = to.start_table();
    fill(to);
    to.end_table(start)
}

/// A column: name, whether it may be null, type, and what it consists of.
fn field(to: &mut Builder, name: &str, nullable: bool, (kind, of): (u8, Table), children: &[Table]) -> Table {
    let name = to.create_string(name);
    let children = to.create_vector(children);
    table(to, |to| {
        to.push_slot_always(slot(0), name);
        to.push_slot(slot(1), nullable, false);
        to.push_slot_always(slot(2), kind);
        to.push_slot_always(slot(3), of);
        to.push_slot_always(slot(5), children);
    })
}
