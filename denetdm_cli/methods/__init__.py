"""The two stages of DeNetDM, one file each, behind one small contract."""
