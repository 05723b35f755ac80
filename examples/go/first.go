// The C library from Go.
//
//	export PKG_CONFIG_PATH=$(msharefs --libdir)/pkgconfig
//	go build first.go && ./first /mnt/go
package main

/*
#cgo pkg-config: msharefs
#include <msharefs.h>
#include <sys/mman.h>

// Go cannot use MAP_FAILED, which is a cast.
static void *attach(int fd) {
	void *base = mshare_attach(fd, 0, 0, NULL, 0);
	return base == MAP_FAILED ? NULL : base;
}
*/
import "C"

import (
	"fmt"
	"log"
	"os"
	"sync"
	"unsafe"
)

const size = 2 << 20

// Open returns the memory of a new region. It is no memory of Go's: the garbage collector leaves it alone.
func Open(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		return nil, err
	}
	fd := C.int(file.Fd())
	flags := C.int(C.MAP_SHARED | C.MAP_FIXED | C.MAP_ANONYMOUS)
	if failed, err := C.mshare_map(fd, 0, size, C.PROT_READ|C.PROT_WRITE, flags, -1, 0); failed != 0 {
		return nil, err
	}
	base, err := C.attach(fd)
	if base == nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(base), size), nil
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: first REGION")
	}
	memory, err := Open(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	// Goroutines share it as any memory; each has pages of its own here.
	var all sync.WaitGroup
	for number := 0; number < 8; number++ {
		all.Add(1)
		go func(page []byte) {
			defer all.Done()
			copy(page, "hello from Go")
		}(memory[number*4096:][:4096])
	}
	all.Wait()
	fmt.Println(string(memory[7*4096:][:13]))
	if failed, err := C.mshare_detach(unsafe.Pointer(&memory[0])); failed != 0 {
		log.Fatal(err)
	}
}
