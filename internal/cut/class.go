package cut

import (
	"bytes"
	"encoding/binary"
)

// HeadLen is how many bytes from the start of a file ClassOf looks at. Shorter
// heads are fine: what cannot be seen does not match.
const HeadLen = 4096

// ClassOf chooses the class of a regular file by its size in bytes, its path
// (raw bytes, relative to its tree) and the first HeadLen bytes of its
// content. A wrong choice costs space or time, never correctness.
func ClassOf(path []byte, size int64, head []byte) Class {
	switch {
	case size < WholeBelow:
		return Whole
	case rewrittenByName(path), rewrittenByMagic(head, size):
		return Fixed
	}
	return Content
}

// suffixes of names of files that their owner rewrites in place.
var suffixes = [][]byte{
	[]byte(".ibd"), []byte(".ibu"), // InnoDB tablespaces
	[]byte(".MYD"), []byte(".MYI"), []byte(".MAD"), []byte(".MAI"), // MyISAM, Aria
	[]byte(".sqlite"), []byte(".sqlite3"), []byte("-wal"), // SQLite and its write-ahead log
	[]byte(".mdb"), []byte(".wt"), []byte(".fdb"), []byte(".gdb"), []byte(".mv.db"),
	[]byte(".raw"), []byte(".img"), []byte(".qcow2"), []byte(".vmdk"), []byte(".vdi"), []byte(".vhd"), []byte(".vhdx"),
}

// prefixes of names of files that their owner rewrites in place. WAL segments
// of fixed size are recycled under new names, page by page.
var prefixes = [][]byte{
	[]byte("ibdata"), []byte("ib_logfile"), []byte("#ib_redo"), []byte("undo_"), []byte("undo0"),
	[]byte("aria_log."), []byte("WiredTigerLog."), []byte("WiredTigerPreplog."),
}

func rewrittenByName(path []byte) bool {
	name := path[bytes.LastIndexByte(path, '/')+1:]
	for _, s := range suffixes {
		if len(name) > len(s) && bytes.HasSuffix(name, s) {
			return true
		}
	}
	for _, p := range prefixes {
		if bytes.HasPrefix(name, p) {
			return true
		}
	}
	return postgres(path, name)
}

// postgres recognises base/<db>/<relation>, global/<relation>,
// pg_tblspc/…/<db>/<relation> and pg_wal/<24 hex digits>, wherever the data
// directory lies. A relation is digits, then optionally a fork (_fsm, _vm,
// _init) and a segment (.N).
func postgres(path, name []byte) bool {
	dir := path[:len(path)-len(name)]
	if under(dir, "pg_wal") || under(dir, "pg_xlog") {
		return len(name) == 24 && all(name, isHex)
	}
	digits := 0
	for digits < len(name) && isDigit(name[digits]) {
		digits++
	}
	if digits == 0 {
		return false
	}
	switch rest := name[digits:]; {
	case len(rest) == 0, rest[0] == '.' && len(rest) > 1 && all(rest[1:], isDigit):
	case bytes.HasPrefix(rest, []byte("_fsm")), bytes.HasPrefix(rest, []byte("_vm")), bytes.HasPrefix(rest, []byte("_init")):
	default:
		return false
	}
	if under(dir, "global") {
		return true
	}
	dir = bytes.TrimSuffix(dir, []byte("/"))
	db := dir[bytes.LastIndexByte(dir, '/')+1:]
	if len(db) == 0 || !all(db, isDigit) {
		return false
	}
	up := dir[:len(dir)-len(db)]
	return under(up, "base") || bytes.Contains(up, []byte("pg_tblspc/")) || bytes.Contains(up, []byte("PG_"))
}

// under reports whether dir (with its trailing slash) ends in the component name.
func under(dir []byte, name string) bool {
	n := len(dir) - len(name) - 1
	return n >= 0 && dir[len(dir)-1] == '/' && string(dir[n:len(dir)-1]) == name && (n == 0 || dir[n-1] == '/')
}

func isDigit(b byte) bool { return '0' <= b && b <= '9' }
func isHex(b byte) bool   { return isDigit(b) || 'A' <= b && b <= 'F' }

func all(s []byte, ok func(byte) bool) bool {
	for _, b := range s {
		if !ok(b) {
			return false
		}
	}
	return true
}

// magics of files that are rewritten in place: bytes at an offset.
var magics = []struct {
	offset int
	bytes  string
}{
	{0, "SQLite format 3\x00"},
	{0, "\x37\x7f\x06\x82"},
	{0, "\x37\x7f\x06\x83"},         // SQLite write-ahead log
	{16, "\xde\xc0\xef\xbe"},        // LMDB meta page
	{16, "\xed\xda\x0c\xed"},        // bbolt meta page
	{0, "\x41\xd8\x01\x00\x01\x00"}, // WiredTiger block file
	{12, "\x62\x31\x05\x00"},        // Berkeley DB, btree
	{12, "\x61\x15\x06\x00"},        // Berkeley DB, hash
	{0, "QFI\xfb"},                  // qcow2
	{0, "KDMV"},
	{0, "COWD"}, // VMDK
	{0, "vhdxfile"},
	{0, "conectix"},          // VHDX, VHD
	{64, "\x7f\x10\xda\xbe"}, // VDI
	{512, "EFI PART"},        // disk image with a GPT
	{0, "XFSB"},
	{0, "LUKS\xba\xbe"}, // file systems and containers of them
	{1080, "\x53\xef"},  // ext2, 3, 4
	{0, "\xfe\xfe\x07"},
	{0, "\xfe\xfe\x0b"}, // MyISAM and Aria indexes
}

func rewrittenByMagic(head []byte, size int64) bool {
	for _, m := range magics {
		if end := m.offset + len(m.bytes); end <= len(head) && string(head[m.offset:end]) == m.bytes {
			return true
		}
	}
	return innodb(head, size) || bootSector(head, size)
}

// innodb recognises a tablespace under any name: the first page is number 0
// and of the type FSP_HDR (8), and both copies of the space id agree.
func innodb(head []byte, size int64) bool {
	return len(head) >= 42 && size%1024 == 0 &&
		binary.BigEndian.Uint32(head[4:]) == 0 &&
		binary.BigEndian.Uint16(head[24:]) == 8 &&
		binary.BigEndian.Uint32(head[34:]) == binary.BigEndian.Uint32(head[38:])
}

// bootSector recognises a raw disk image with an MBR. The two signature bytes
// are weak, so the partition table must look like one too.
func bootSector(head []byte, size int64) bool {
	if len(head) < 512 || size%512 != 0 || head[510] != 0x55 || head[511] != 0xaa {
		return false
	}
	used := false
	for at := 446; at < 510; at += 16 {
		if status := head[at]; status != 0 && status != 0x80 {
			return false
		}
		used = used || head[at+4] != 0
	}
	return used
}
