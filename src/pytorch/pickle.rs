//! A reader of Python pickles that runs nothing: it knows plain containers, and what PyTorch says of tensors. Every
//! other class or function in a pickle becomes [`Object::Opaque`], which no name can be looked up in; none is imported
//! or called. Memory is bounded by the length of the pickle, and by [`MAX_OBJECTS`].

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

/// More than any checkpoint has beside its tensors' values: each object takes some 72 bytes.
const MAX_OBJECTS: usize = 4_000_000;
/// The object that stands for everything unknown; none of these is ever changed, so one is enough.
const OPAQUE: Id = 0;

/// Number of an object. Containers hold numbers, so a pickle may refer to an object twice, or from within itself.
pub type Id = usize;

/// What makes every plain tensor.
const REBUILD: &str = "torch._utils._rebuild_tensor_v2";
/// Longest name of a class, of a storage, of a tensor: a pickle may repeat a text without saying it again.
const MAX_NAME: usize = 1000;
/// Most axes of a tensor.
const MAX_AXES: usize = 8;

/// What a pickle can say.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// `None`, a float, bytes, a set, or an instance of an unknown class.
    Opaque,
    /// An integer or a boolean that fits.
    Int(i64),
    /// A string.
    Text(String),
    /// A tuple or a list.
    Sequence(Vec<Id>),
    /// A dictionary, ordered or not.
    Dict(Vec<(Id, Id)>),
    /// The name of a class or function, its module before a dot.
    Global(String),
    /// Values that are kept outside: `torch.FloatStorage` and the like.
    Storage {
        /// The class's name without `torch.`.
        class: String,
        /// Name of the values.
        key: String,
    },
    /// A view into a storage.
    Tensor {
        /// The storage.
        storage: Id,
        /// First value.
        offset: i64,
        /// Lengths of the axes.
        shape: Vec<i64>,
        /// Values between neighbors on each axis.
        strides: Vec<i64>,
        /// The values are the negative or the conjugate of those in the storage.
        lazy: bool,
    },
    /// A tensor that is not read: sparse, quantized, of another type.
    OtherTensor,
}

/// All objects of a pickle.
#[derive(Debug)]
pub struct Pickle {
    objects: Vec<Object>,
    /// The one that was pickled.
    pub root: Id,
}

impl Pickle {
    /// Reads a pickle of protocol 0 to 5.
    /// # Errors
    /// It is cut off or damaged, or needs what pickles of PyTorch do not have.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let mut machine = Machine { rest: bytes, objects: vec![Object::Opaque], ..Machine::default() };
        let root = loop {
            let at = bytes.len() - machine.rest.len();
            let step = machine.step().with_context(|| format!("damaged pickle at byte {at}"))?;
            if let Some(root) = step {
                break root;
            }
        };
        Ok(Self { objects: machine.objects, root })
    }

    /// A text that may be the name of a tensor.
    pub fn name(&self, id: Id) -> Option<&str> {
        if let Object::Text(text) = self.get(id) { Some(text.as_str()).filter(|text| is_name(text)) } else { None }
    }

    /// The object of this number.
    pub fn get(&self, id: Id) -> &Object {
        self.objects.get(id).unwrap_or(&Object::Opaque)
    }
}

/// Python's `pickle._Unpickler`, without its power.
#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    objects: Vec<Object>,
    stack: Vec<Id>,
    /// Lengths of the stack where a group of items began.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// One instruction; the value is the pickled object, at the end.
    fn step(&mut self) -> Result<Option<Id>> {
        let op = self.take(1)?[0];
        match op {
            b'.' => return Ok(Some(self.pop()?)),
            0x80 => drop(self.take(1)?), // protocol
            0x95 => drop(self.take(8)?), // length of a frame
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => self.stack.push(*self.stack.last().context("an empty stack")?),
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.remember_or_recall(op)?,
            b'a' | b'e' | b's' | b'u' | 0x90 | b'b' => self.fill(op)?,
            b'R' | 0x81 | 0x92 | b'i' | b'o' => self.build(op)?,
            b'P' => {
                self.line()?;
                self.push(Object::Opaque)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id).unwrap_or(Object::Opaque);
                self.push(storage)?;
            }
            _ => {
                let object = self.literal(op)?;
                self.push(object)?;
            }
        }
        let most = self.stack.len().max(self.marks.len()).max(self.memo.len());
        ensure!(most <= MAX_OBJECTS, "more than {MAX_OBJECTS} values at once");
        Ok(None)
    }

    /// A value that an instruction holds or takes from the stack. Long, because it is the table of these instructions.
    fn literal(&mut self, op: u8) -> Result<Object> {
        Ok(match op {
            b'N' => Object::Opaque,
            0x88 | 0x89 => Object::Int(i64::from(op == 0x88)),
            b'I' | b'L' => {
                let line = self.line()?;
                line.trim_end_matches('L').parse().map_or(Object::Opaque, Object::Int)
            }
            b'K' | b'M' => Object::Int(self.number(if op == b'K' { 1 } else { 2 })? as i64),
            b'J' => Object::Int(i64::from(self.number(4)? as u32 as i32)),
            0x8a | 0x8b => {
                let length = self.number(if op == 0x8a { 1 } else { 4 })?;
                integer(self.take(length)?)
            }
            b'F' => {
                self.line()?;
                Object::Opaque
            }
            b'G' => {
                self.take(8)?;
                Object::Opaque
            }
            b'S' => Object::Text(self.line()?.trim_matches(['\'', '"']).to_string()),
            b'V' => Object::Text(self.line()?.to_string()),
            b'X' | b'T' => self.text(4)?,
            0x8c | b'U' => self.text(1)?,
            0x8d => self.text(8)?,
            b'B' | b'C' | 0x8e | 0x96 => {
                let width = if op == b'B' {
                    4
                } else if op == b'C' {
                    1
                } else {
                    8
                };
                let length = self.number(width)?;
                self.take(length)?;
                Object::Opaque
            }
            b'}' => Object::Dict(Vec::new()),
            b']' | b')' => Object::Sequence(Vec::new()),
            0x8f => Object::Opaque, // a set
            0x91 => {
                self.pop_mark()?;
                Object::Opaque // a frozenset
            }
            b't' | b'l' => Object::Sequence(self.pop_mark()?),
            0x85..=0x87 => {
                let from = self.stack.len().checked_sub(usize::from(op - 0x84)).context("an empty stack")?;
                Object::Sequence(self.stack.split_off(from))
            }
            b'd' => Object::Dict(pairs(&self.pop_mark()?)),
            b'c' => {
                let module = self.line()?;
                Object::Global(format!("{module}.{}", self.line()?))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.objects[module], &self.objects[name]) {
                    (Object::Text(module), Object::Text(name)) if module.len() + name.len() <= MAX_NAME => {
                        Object::Global(format!("{module}.{name}"))
                    }
                    _ => Object::Opaque,
                }
            }
            _ => bail!("unknown instruction {op:#04x}"),
        })
    }

    fn remember_or_recall(&mut self, op: u8) -> Result<()> {
        let key = match op {
            b'p' | b'g' => self.line()?.parse().context("not a number")?,
            b'q' | b'h' => self.number(1)? as u64,
            b'r' | b'j' => self.number(4)? as u64,
            _ => self.memo.len() as u64,
        };
        if matches!(op, b'g' | b'h' | b'j') {
            self.stack.push(*self.memo.get(&key).with_context(|| format!("nothing remembered as {key}"))?);
        } else {
            self.memo.insert(key, *self.stack.last().context("an empty stack")?);
        }
        Ok(())
    }

    /// Adds what is on the stack to the container below; an unknown object takes everything and keeps nothing.
    fn fill(&mut self, op: u8) -> Result<()> {
        let items = match op {
            b'a' | b'b' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let container = *self.stack.last().context("an empty stack")?;
        match (&mut self.objects[container], op) {
            (Object::Sequence(list), b'a' | b'e') => list.extend(items),
            (Object::Dict(dict), b's' | b'u') => dict.extend(pairs(&items)),
            _ => {} // attributes, such as the metadata of a state_dict
        }
        Ok(())
    }

    /// Where Python would call something.
    fn build(&mut self, op: u8) -> Result<()> {
        let result = match op {
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.call(callable, args)
            }
            0x92 => {
                self.pop()?;
                self.pop()?;
                self.pop()?;
                Object::Opaque
            }
            b'i' => {
                self.line()?;
                self.line()?;
                self.pop_mark()?;
                Object::Opaque
            }
            _ => {
                self.pop_mark()?;
                Object::Opaque
            }
        };
        self.push(result)
    }

    /// What a call of one of PyTorch's functions would give; anything else is opaque.
    fn call(&self, callable: Id, args: Id) -> Object {
        let (Object::Global(name), Object::Sequence(args)) = (&self.objects[callable], &self.objects[args]) else {
            return Object::Opaque;
        };
        let known = match name.as_str() {
            "collections.OrderedDict" if args.is_empty() => Some(Object::Dict(Vec::new())),
            REBUILD => self.tensor(args),
            // A tensor with attributes, or of a subclass: (function, class, arguments, state).
            "torch._tensor._rebuild_from_type_v2" => self.rebuilt(args),
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                args.first().map(|&data| &self.objects[data]).filter(|o| matches!(o, Object::Tensor { .. })).cloned()
            }
            other if other.starts_with("torch._utils._rebuild_") => Some(Object::OtherTensor),
            _ => None,
        };
        known.unwrap_or(Object::Opaque)
    }

    fn rebuilt(&self, args: &[Id]) -> Option<Object> {
        let &[function, _, args, ..] = args else { return None };
        match (&self.objects[function], &self.objects[args]) {
            (Object::Global(name), Object::Sequence(args)) if name == REBUILD => self.tensor(args),
            _ => None,
        }
    }

    /// `(storage, offset, size, stride, requires_grad, hooks, metadata)`.
    fn tensor(&self, args: &[Id]) -> Option<Object> {
        let &[storage, offset, shape, strides, ref more @ ..] = args else { return None };
        // Whether the values are to be negated or conjugated.
        let lazy = more.get(2).is_some_and(|&id| matches!(&self.objects[id], Object::Dict(items) if !items.is_empty()));
        let numbers = |id: Id| match &self.objects[id] {
            Object::Sequence(items) if items.len() <= MAX_AXES => {
                items.iter().map(|&item| self.int(item)).collect::<Option<Vec<i64>>>()
            }
            _ => None,
        };
        matches!(self.objects[storage], Object::Storage { .. }).then_some(())?;
        let (shape, strides) = (numbers(shape)?, numbers(strides)?);
        Some(Object::Tensor { storage, offset: self.int(offset)?, shape, strides, lazy })
    }

    /// `("storage", torch.FloatStorage, key, device, length)`.
    fn storage(&self, id: Id) -> Option<Object> {
        let Object::Sequence(items) = &self.objects[id] else { return None };
        let &[kind, class, key, ..] = &items[..] else { return None };
        match (&self.objects[kind], &self.objects[class], &self.objects[key]) {
            (Object::Text(kind), Object::Global(class), Object::Text(key))
                if kind == "storage" && key.len() <= MAX_NAME =>
            {
                Some(Object::Storage { class: class.strip_prefix("torch.")?.to_string(), key: key.clone() })
            }
            _ => None,
        }
    }

    fn int(&self, id: Id) -> Option<i64> {
        if let Object::Int(value) = self.objects[id] { Some(value) } else { None }
    }

    fn push(&mut self, object: Object) -> Result<()> {
        if object == Object::Opaque {
            self.stack.push(OPAQUE);
            return Ok(());
        }
        ensure!(self.objects.len() < MAX_OBJECTS, "more than {MAX_OBJECTS} objects");
        self.stack.push(self.objects.len());
        self.objects.push(object);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        // Items above a mark belong to its group.
        ensure!(self.marks.last().is_none_or(|&mark| mark < self.stack.len()), "an item of a group is missing");
        self.stack.pop().context("an empty stack")
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().context("a group that never began")?;
        ensure!(mark <= self.stack.len(), "a group that lost its items");
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).context("it ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    /// A little-endian number of up to 8 bytes.
    fn number(&mut self, width: usize) -> Result<usize> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(bytes)).context("a length beyond memory")
    }

    fn text(&mut self, width: usize) -> Result<Object> {
        let length = self.number(width)?;
        Ok(Object::Text(String::from_utf8_lossy(self.take(length)?).into_owned()))
    }

    fn line(&mut self) -> Result<&'a str> {
        let length = self.rest.iter().position(|&byte| byte == b'\n').context("a line without an end")?;
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).context("a line that is not UTF-8")
    }
}

/// Whether it is short, and harmless on a terminal.
fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME && !text.contains(char::is_control)
}

fn pairs(items: &[Id]) -> Vec<(Id, Id)> {
    items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

/// Little-endian, two's complement, of any length.
fn integer(bytes: &[u8]) -> Object {
    if bytes.len() > 8 {
        return Object::Opaque;
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut all = [if negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Object::Int(i64::from_le_bytes(all))
}
