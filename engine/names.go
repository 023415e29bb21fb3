package engine

import (
	"fmt"
	"strings"

	"github.com/snapctl/snapctl/chunk"
)

// packName is the name of the object that is a pack.
func packName(id chunk.PackID) string {
	s := id.String()
	return "packs/" + s[:2] + "/" + s
}

const profilePrefix = "hot/"

// parsePackName is the inverse of packName.
func parsePackName(name string) (chunk.PackID, error) {
	id, err := chunk.ParsePackID(name[strings.LastIndexByte(name, '/')+1:])
	if err != nil || packName(id) != name {
		return id, fmt.Errorf("%q is not the name of a pack", name)
	}
	return id, nil
}
