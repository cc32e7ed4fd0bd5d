package layer_test

import (
	"bytes"
	stdflate "compress/flate"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
)

// member writes a gzip member around a given compressor: the standard library
// cannot be used where the exact bytes matter.
type member struct {
	w    io.Writer
	z    *stdflate.Writer
	crc  uint32
	size uint32
}

func newMember(w io.Writer, z *stdflate.Writer, level int) *member {
	xfl := map[int]byte{1: 4, 9: 2}[level]
	_, _ = w.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, xfl, 255})
	z.Reset(w)
	return &member{w: w, z: z}
}

func (m *member) Write(p []byte) (int, error) {
	m.crc = crc32.Update(m.crc, crc32.IEEETable, p)
	m.size += uint32(len(p))
	return m.z.Write(p)
}

func (m *member) Close() error {
	if err := m.z.Close(); err != nil {
		return err
	}
	return binary.Write(m.w, binary.LittleEndian, []uint32{m.crc, m.size})
}

// gzipStored compresses as no level of Go's does: it flushes now and then.
func gzipStored(data []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	for len(data) > 0 {
		n := min(len(data), 1000)
		_, _ = w.Write(data[:n])
		_ = w.Flush()
		data = data[n:]
	}
	_ = w.Close()
	return out.Bytes()
}

// gzipTwoLevels compresses the first n bytes at level 6 and the rest at level
// 1, in one member, as a compressor that adapts itself does.
func gzipTwoLevels(data []byte, n int) []byte {
	var out bytes.Buffer
	z, err := stdflate.NewWriter(nil, 6)
	if err != nil {
		panic(err)
	}
	m := newMember(&out, z, 6)
	_, _ = m.Write(data[:n])
	_ = m.z.Flush()
	fast, err := stdflate.NewWriter(&out, 1)
	if err != nil {
		panic(err)
	}
	m.z = fast
	_, _ = m.Write(data[n:])
	_ = m.Close()
	return out.Bytes()
}
