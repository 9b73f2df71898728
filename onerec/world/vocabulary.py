"""The topic tree and its words: groups of topics, six words a topic, from which titles are made."""

TOPIC_TREE: dict[str, dict[str, str]] = {
    "sports": {
        "football": "goal striker penalty dribble stadium keeper",
        "basketball": "dunk rebound hoop dribbling court buzzer",
        "running": "marathon sprint jogging pace trail treadmill",
        "climbing": "boulder rope summit harness cliff grip",
        "swimming": "pool freestyle backstroke diving lap goggles",
        "cycling": "bicycle pedal peloton mountainbike gears helmet",
    },
    "food": {
        "baking": "bread cake oven dough frosting cookies",
        "grilling": "barbecue steak charcoal ribs smoker brisket",
        "noodles": "ramen pasta spaghetti broth udon dumplings",
        "coffee": "espresso latte barista roast grinder cappuccino",
        "salads": "avocado lettuce vinaigrette tomato kale vegan",
        "desserts": "chocolate pudding caramel icecream tiramisu pastry",
    },
    "music": {
        "guitar": "chords riff acoustic strumming solo fretboard",
        "piano": "keys sonata chopin melody pianist etude",
        "singing": "vocals choir karaoke harmony falsetto microphone",
        "drums": "beat snare cymbal groove percussion fills",
        "hiphop": "rap freestyling lyrics rhyme producer sample",
        "orchestra": "symphony violin conductor cello concert strings",
    },
    "travel": {
        "beaches": "ocean island surf sand palm snorkelling",
        "mountains": "hiking alps peak cabin valley glacier",
        "cities": "skyline metro museum streets architecture nightlife",
        "camping": "tent campfire forest backpack lantern wilderness",
        "trains": "railway station locomotive sleeper carriage track",
        "flights": "airplane airport cockpit takeoff luggage runway",
    },
    "games": {
        "chess": "checkmate gambit queen endgame opening bishop",
        "shooters": "sniper headshot respawn squad weapon arena",
        "puzzles": "riddle jigsaw sudoku maze brainteaser crossword",
        "racing": "chicane drift circuit nitro overtaking podium",
        "roleplay": "quest dragon wizard dungeon sword loot",
        "retro": "arcade pixel console cartridge joystick platformer",
    },
    "animals": {
        "cats": "kitten purring whiskers meow tabby litter",
        "dogs": "puppy retriever fetch barking leash terrier",
        "birds": "parrot feathers nest eagle chirping owl",
        "horses": "stallion saddle gallop foal dressage stable",
        "aquarium": "goldfish reef coral tank jellyfish shrimp",
        "wildlife": "lion safari elephant savanna giraffe predator",
    },
    "crafts": {
        "woodworking": "lathe chisel plywood carving sawdust joinery",
        "knitting": "yarn needles crochet sweater wool scarf",
        "painting": "watercolour canvas brush palette acrylic portrait",
        "pottery": "clay wheel glaze kiln ceramic vase",
        "gardening": "seeds compost tomatoes pruning greenhouse soil",
        "sewing": "fabric stitch pattern zipper quilting thread",
    },
    "science": {
        "astronomy": "telescope galaxy planet nebula orbit comet",
        "chemistry": "reaction acid molecule laboratory beaker catalyst",
        "robots": "servo arduino sensor drone circuitboard automation",
        "physics": "gravity magnet quantum laser pendulum particle",
        "dinosaurs": "fossil triassic raptor excavation skeleton jurassic",
        "weather": "tornado lightning storm hurricane forecast blizzard",
    },
}
OPENERS = ("best", "amazing", "first", "relaxing", "extreme", "ultimate", "funny", "daily", "secret", "slow")

GROUPS = tuple(TOPIC_TREE)
TOPICS = tuple((group, topic) for group, topics in TOPIC_TREE.items() for topic in topics)
WORDS = tuple(tuple(TOPIC_TREE[group][topic].split()) for group, topic in TOPICS)
WORDS_PER_TOPIC = 6
