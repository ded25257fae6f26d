// What Go's archive/tar makes of archives: the reader that every container engine written in Go has.
//
//	oracle list               archives on standard input, each after its length (8 bytes, little-endian)
//	oracle rewrite [pax]      one archive on standard input, written anew to standard output
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"sort"
	"strings"
	"time"
)

const xattr = "SCHILY.xattr."

func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return fmt.Sprintf("%d.%d", t.Unix(), t.Nanosecond())
}

func kind(h *tar.Header) byte {
	switch h.Typeflag {
	case tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse:
		return '0'
	}
	return h.Typeflag
}

func list(out io.Writer, archive []byte) {
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := reader.Next()
		if err == io.EOF {
			fmt.Fprintln(out, "end")
			return
		}
		if err == nil && h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err == nil && (h.Typeflag < '0' || h.Typeflag > '7') && h.Typeflag != 0 && h.Typeflag != 'S' {
			err = fmt.Errorf("unhandled type")
		}
		fits := func(n int64) bool { return n >= 0 && n <= math.MaxUint32 }
		device := err == nil && (h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock)
		if err == nil && (h.Name == "" || strings.Contains(h.Name, "\x00") ||
			!fits(int64(h.Uid)) || !fits(int64(h.Gid)) || h.Uid == math.MaxUint32 || h.Gid == math.MaxUint32 ||
			device && (!fits(h.Devmajor) || !fits(h.Devminor))) {
			err = fmt.Errorf("does not fit")
		}
		sum := crc32.NewIEEE()
		size := int64(0)
		if err == nil && kind(h) == '0' {
			size = h.Size
			if size > 1<<30 {
				err = fmt.Errorf("too big")
			} else {
				_, err = io.Copy(sum, reader)
			}
		}
		if err != nil {
			fmt.Fprintln(out, "error")
			return
		}
		major, minor, link := int64(0), int64(0), ""
		if device {
			major, minor = h.Devmajor, h.Devminor
		}
		if h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeSymlink {
			link = h.Linkname
		}
		xattrs := []string{}
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, xattr) {
				xattrs = append(xattrs, fmt.Sprintf("%x=%x", k[len(xattr):], v))
			}
		}
		sort.Strings(xattrs)
		fmt.Fprintf(out, "%c name=%x link=%x size=%d mode=%o ids=%d:%d names=%x:%x mtime=%s atime=%s device=%d:%d xattrs=%s crc=%08x\n",
			kind(h), h.Name, link, size, h.Mode&07777, h.Uid, h.Gid, h.Uname, h.Gname, stamp(h.ModTime), stamp(h.AccessTime),
			major, minor, strings.Join(xattrs, ","), sum.Sum32())
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func rewrite(pax bool) {
	reader := tar.NewReader(bufio.NewReader(os.Stdin))
	out := bufio.NewWriter(os.Stdout)
	writer := tar.NewWriter(out)
	for {
		h, err := reader.Next()
		if err == io.EOF {
			break
		}
		check(err)
		fresh := &tar.Header{
			Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid,
			Uname: h.Uname, Gname: h.Gname, ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor,
		}
		if pax {
			fresh.Format = tar.FormatPAX
			fresh.AccessTime = h.AccessTime
		}
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, xattr) {
				if fresh.PAXRecords == nil {
					fresh.PAXRecords = map[string]string{}
				}
				fresh.PAXRecords[k] = v
			}
		}
		check(writer.WriteHeader(fresh))
		_, err = io.Copy(writer, reader)
		check(err)
	}
	check(writer.Close())
	check(out.Flush())
}

func main() {
	if os.Args[1] == "rewrite" {
		rewrite(len(os.Args) > 2)
		return
	}
	in := bufio.NewReader(os.Stdin)
	out := bufio.NewWriter(os.Stdout)
	for {
		var length uint64
		err := binary.Read(in, binary.LittleEndian, &length)
		if err == io.EOF {
			break
		}
		check(err)
		archive := make([]byte, length)
		_, err = io.ReadFull(in, archive)
		check(err)
		list(out, archive)
	}
	check(out.Flush())
}
